"""The function as a real process: the answers of the README's table, and requests it refuses."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.function import (
    JSON,
    ROOT,
    Function,
    Svix,
    event,
    function,
    function_on_sqlite,
    simulator,
    wrapped,
)

ALL_WAITING = 300
MIB = 1024 * 1024
UNLIMITED = httpx.Limits(max_connections=None)


@pytest.fixture(scope="module")
def svix() -> Iterator[Svix]:
    """The simulator, which all tests share. Each test removes its faults at the end."""
    with simulator() as started:
        started.control.set_behaviour(kind="open_source")  # which shows the text unchanged
        yield started


@pytest.fixture(scope="module")
def relay(svix: Svix) -> Iterator[Function]:
    """The function, which all tests share. Each test has event ids of its own."""
    with function_on_sqlite(svix, REQUEST_BUDGET_SECONDS="30") as started:
        yield started


@pytest.fixture(autouse=True)
def _healthy(svix: Svix) -> Iterator[None]:
    yield
    svix.control.clear_faults()
    svix.control.set_behaviour(rate=None, latency=0)


@pytest.fixture
async def client(relay: Function) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the function whose timeout is longer than the function's budget."""
    async with httpx.AsyncClient(base_url=relay.url, timeout=60, limits=UNLIMITED) as opened:
        yield opened


async def post(client: httpx.AsyncClient, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    """Post a body. Returns the status and the answer."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = await client.post("/notifications", content=content, headers={**JSON, **headers})
    answer: dict[str, Any] = response.json()
    return response.status_code, answer


def claims(ledger: Path, state: str) -> int:
    """The number of records in this state; 0 while the ledger is being created."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as database:
            query = "select count(*) from events where state = ?"
            [count] = database.execute(query, (state,)).fetchone()
            return int(count)
    except sqlite3.OperationalError:
        return 0


def held(svix: Svix, event_id: str) -> list[dict[str, Any]]:
    """Svix's messages for this event."""
    return [m for m in svix.control.messages() if m["event_id"] == event_id]


def refusals(svix: Svix) -> int:
    """The number of calls that Svix has refused."""
    return sum(call["status"] == 429 for call in svix.control.calls())


async def wait_until_svix_refuses(svix: Svix, already: int) -> None:
    """Wait until Svix has refused three more calls, so that the relay's gate is closed."""
    async with asyncio.timeout(30):
        while refusals(svix) < already + 3:  # noqa: ASYNC110 - another process can't signal it
            await asyncio.sleep(0.05)


async def test_an_event_is_delivered_once_and_then_a_duplicate(
    client: httpx.AsyncClient, svix: Svix
) -> None:
    """Both answers are 200 and name the same message, and Svix has only that one."""
    status, answer = await post(client, event("evt_twice"))
    again, repeated = await post(client, event("evt_twice"))
    assert (status, answer["outcome"]) == (200, "delivered")
    assert (again, repeated["outcome"]) == (200, "duplicate")
    [message] = held(svix, "evt_twice")
    assert answer["svix_message_id"] == repeated["svix_message_id"] == message["id"]


async def test_the_event_reaches_svix_byte_for_byte(client: httpx.AsyncClient, svix: Svix) -> None:
    """Spaces, escapes, key order and each digit of each number are unchanged."""
    body = (
        '{"id":"evt_equal", "type" : "user.created","project":"acme",\n'
        '"n":[1.000000000000000000001,-0.0,1E7,1e-7,12345678901234567890123456789012345678901],'
        '"deep":[[{"er":null}],true],"text":"Zo\\u00eb 東京 🎉 \\/","z":1,"a":2}'
    ).encode()
    assert (await post(client, body))[0] == 200
    [message] = held(svix, "evt_equal")
    assert message["text"].encode() == body


async def test_all_three_bodies_are_one_event(client: httpx.AsyncClient, svix: Svix) -> None:
    """The same event, posted wrapped, unwrapped and bare, is delivered once."""
    body = json.dumps(event("evt_bodies")).encode()
    headers = {"x-goog-pubsub-message-id": "2", "content-type": "text/plain"}
    answers = [
        await post(client, wrapped(body, "1")),
        await post(client, body, **headers),
        await post(client, body),
    ]
    outcomes = [(status, answer["outcome"]) for status, answer in answers]
    assert outcomes == [(200, "delivered"), (200, "duplicate"), (200, "duplicate")]
    assert len(held(svix, "evt_bodies")) == 1


@pytest.mark.parametrize("kind", ["sqlite", "firestore"])
async def test_of_a_hundred_posts_at_once_one_delivers_and_none_is_refused(
    kind: str, svix: Svix, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """There is one message, and ninety-nine duplicates without a 409, even with two instances."""
    settings: dict[str, str] = {"LEDGER": f"sqlite:{tmp_path}/ledger.db"}
    if kind == "firestore":
        settings = request.getfixturevalue("firestore")
    svix.control.set_behaviour(latency=0.2)
    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(function(svix.url, **settings)).url for _ in range(2)]
        async with httpx.AsyncClient(timeout=60, limits=UNLIMITED) as client:
            for name, instances in (("alone", 1), ("shared", 2)):
                body = event(f"evt_hundred_{kind}_{name}")
                posts = (
                    client.post(f"{urls[number % instances]}/notifications", json=body)
                    for number in range(100)
                )
                answers = await asyncio.gather(*posts)
                outcomes = Counter(answer.json()["outcome"] for answer in answers)
                assert outcomes == {"delivered": 1, "duplicate": 99}
                assert len(held(svix, body["id"])) == 1


async def test_a_duplicate_never_waits(svix: Svix, tmp_path: Path) -> None:
    """It is answered at once, even while Svix refuses everything."""
    with function(svix.url, LEDGER=f"sqlite:{tmp_path}/ledger.db") as relay:
        async with httpx.AsyncClient(base_url=relay.url, timeout=60) as client:
            await post(client, event("evt_known"))
            already = refusals(svix)
            svix.control.inject("status", status=429, headers={"Retry-After": "3600"})
            posts = (post(client, event(f"evt_new_{number}")) for number in range(5))
            waiting = [asyncio.create_task(one) for one in posts]
            await wait_until_svix_refuses(svix, already)
            status, answer = await post(client, event("evt_known"))
            assert (status, answer["outcome"]) == (200, "duplicate")
            assert not any(task.done() for task in waiting)
            for task in waiting:
                task.cancel()


async def test_two_first_events_that_race_for_one_application_are_both_delivered(
    client: httpx.AsyncClient, svix: Svix
) -> None:
    """One gets a 409 although Svix has no message for it. It is sent again with the same key."""
    svix.control.inject("race", times=1)
    names = ["evt_race_1", "evt_race_2"]
    posts = [post(client, event(name, project="newcomer")) for name in names]
    answers = await asyncio.gather(*posts)
    assert [(status, answer["outcome"]) for status, answer in answers] == [(200, "delivered")] * 2
    assert [len(held(svix, name)) for name in names] == [1, 1]


async def test_after_a_lost_answer_the_same_request_sends_again(
    client: httpx.AsyncClient, svix: Svix
) -> None:
    """Svix has stored the message. It recognises the second call by its idempotency key."""
    svix.control.inject("lose_answer", times=1)
    status, answer = await post(client, event("evt_lost_answer"))
    assert (status, answer["outcome"]) == (200, "delivered")
    [message] = held(svix, "evt_lost_answer")
    assert answer["svix_message_id"] == message["id"]


async def test_with_a_broken_ledger_the_answer_is_500_and_nothing_is_sent(
    tmp_path: Path, svix: Svix
) -> None:
    """Without a claim nothing is sent to Svix, and nothing is acknowledged."""
    (tmp_path / "ledger.db").write_bytes(b"no database at all, " * 100)
    with function(svix.url, LEDGER=f"sqlite:{tmp_path}/ledger.db") as relay:
        async with httpx.AsyncClient(base_url=relay.url, timeout=60) as client:
            status, answer = await post(client, event("evt_no_ledger"))
            assert (status, answer["outcome"]) == (500, "misconfigured")
    assert held(svix, "evt_no_ledger") == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/notifications", 405),
        ("PUT", "/notifications", 405),
        ("POST", "/", 404),
        ("POST", "/notifications/", 404),
        ("POST", "/notifications/../x", 404),
        ("GET", "/anything", 404),
    ],
)
async def test_only_posts_to_notifications_are_taken(
    client: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    """Other paths are answered 404, and other methods 405 with `Allow`."""
    answer = await client.request(method, path)
    assert answer.status_code == status
    assert answer.headers.get("allow") == ("POST" if status == 405 else None)


async def test_a_body_of_40_mib_is_refused_after_2(relay: Function) -> None:
    """The 413 comes after 2 MiB. The rest of the body is not awaited."""
    port = int(relay.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /notifications HTTP/1.1\r\nHost: x\r\nContent-Length: {40 * MIB}\r\n\r\n"
    writer.write(head.encode() + b" " * (2 * MIB + 1))
    async with asyncio.timeout(30):  # the rest never comes, so an answer means it was not awaited
        assert (await reader.readline()).split()[1] == b"413"
    writer.close()


def test_curl_can_post_every_sample_event_twice(relay: Function, svix: Svix) -> None:
    """`curl --fail` succeeds for all sample events, twice, and each event becomes one message."""
    loop = (
        "for f in local/events/*.json; do curl --silent --data @$f"
        f" -H 'Content-Type: application/json' --fail {relay.notifications} || exit 1; done"
    )
    for _ in range(2):
        subprocess.run(["/bin/sh", "-c", loop], cwd=ROOT, check=True, capture_output=True)  # noqa: S603 - our own command
    for path in (ROOT / "local" / "events").glob("*.json"):
        body = path.read_bytes().replace(b"\n", b"")  # as `curl --data` does
        [message] = held(svix, json.loads(body)["id"])
        assert message["text"].encode() == body


def test_a_wrong_configuration_ends_the_start_with_one_message(tmp_path: Path) -> None:
    """The message names every fault and has no stack trace, and the exit code is not zero."""
    environment = {
        **os.environ,
        "LEDGER": "postgres",
        "REQUEST_BUDGET_SECONDS": "soon",
        "LOG_LEVEL": "loud",
    }
    environment.pop("SVIX_TOKEN", None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])
    command = [sys.executable, "-m", "functions_framework", "--target", "notifications"]
    ended = subprocess.run(  # noqa: S603 - our own command
        [*command, "--source", str(ROOT / "main.py"), "--host", "127.0.0.1", "--port", port],
        env=environment,
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = ended.stdout + ended.stderr
    assert ended.returncode != 0
    for name in ("SVIX_TOKEN", "LEDGER", "REQUEST_BUDGET_SECONDS", "LOG_LEVEL"):
        assert name in said
    assert said.count("the relay cannot start") == 1
    assert "Traceback" not in said


async def test_a_process_that_was_frozen_for_a_long_time_answers_the_push_that_wakes_it(
    svix: Svix, tmp_path: Path
) -> None:
    """Cloud Run gives an idle instance no processor. The server must not take that for a hang."""
    environment = {"LEDGER": f"sqlite:{tmp_path}/ledger.db", "CLOUD_RUN_TIMEOUT_SECONDS": "1"}
    with function(svix.url, **environment) as relay:
        limits = httpx.Limits(max_keepalive_connections=0)  # idle ones are closed when it wakes
        async with httpx.AsyncClient(base_url=relay.url, timeout=60, limits=limits) as client:
            assert (await post(client, event("evt_before")))[0] == 200
            relay.server.send_signal(signal.SIGSTOP)
            await asyncio.sleep(
                4
            )  # the test is about a process that is frozen for longer than the timeout
            waking = asyncio.create_task(post(client, event("evt_wakes")))
            relay.server.send_signal(signal.SIGCONT)
            status, answer = await waking
    assert (status, answer["outcome"]) == (200, "delivered")


async def test_on_sigterm_all_waiting_requests_are_answered(tmp_path: Path, svix: Svix) -> None:
    """Hundreds wait for a turn. All are answered 500, no claim is left, and the process ends."""
    file, already = tmp_path / "ledger.db", refusals(svix)
    svix.control.inject("status", status=429, headers={"Retry-After": "3600"})
    names = [f"evt_term_{number}" for number in range(ALL_WAITING)]
    limits = httpx.Limits(max_connections=None)
    async with contextlib.AsyncExitStack() as stack:
        relay = stack.enter_context(function(svix.url, LEDGER=f"sqlite:{file}"))
        client = httpx.AsyncClient(base_url=relay.url, timeout=60, limits=limits)
        await stack.enter_async_context(client)
        posts = [asyncio.create_task(post(client, event(name))) for name in names]
        await wait_until_svix_refuses(svix, already)
        relay.server.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):  # after this time Cloud Run kills the process
            answers = await asyncio.gather(*posts, return_exceptions=True)
            await asyncio.to_thread(relay.server.process.wait)
    outcomes = Counter(
        answer[1]["outcome"] if isinstance(answer, tuple) else repr(answer) for answer in answers
    )
    assert outcomes == {"unavailable": ALL_WAITING}
    assert claims(file, "claimed") == 0
