"""The function as a real process: every answer of the README's table, and what a request may be."""

import asyncio
import contextlib
import gzip
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

from tests.function import JSON, ROOT, Function, Svix, event, function, simulator, wrapped

ALL_WAITING = 300
NEARLY_ALL = 280  # the first few were sent before the limit was met
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def svix() -> Iterator[Svix]:
    """One simulator; each test forgets what the one before it left."""
    with simulator() as started:
        yield started


@pytest.fixture(scope="module")
def relay(svix: Svix, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Function]:
    """One function on a ledger file; tests keep apart by their events' ids."""
    ledger = tmp_path_factory.mktemp("ledger") / "ledger.db"
    with function(svix.url, LEDGER=f"sqlite:{ledger}", REQUEST_BUDGET_SECONDS="25") as started:
        yield started


@pytest.fixture(autouse=True)
def _healthy(svix: Svix) -> Iterator[None]:
    yield
    svix.control.clear_faults()
    svix.control.conduct(rate=None, latency=0)


@pytest.fixture
async def client(relay: Function) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the function that outwaits its budget."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=relay.url, timeout=60, limits=limits) as opened:
        yield opened


async def post(client: httpx.AsyncClient, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    """Post one body; the status and the answer."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = await client.post("/notifications", content=content, headers={**JSON, **headers})
    told: dict[str, Any] = answer.json()
    return answer.status_code, told


def claims(ledger: Path, state: str) -> int:
    """How many records are in this state; none while the ledger is being made."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as database:
            query = "select count(*) from events where state = ?"
            [count] = database.execute(query, (state,)).fetchone()
            return int(count)
    except sqlite3.OperationalError:
        return 0


def held(svix: Svix, event_id: str) -> list[dict[str, Any]]:
    """The messages that Svix has of this event."""
    return [m for m in svix.control.messages() if m["event_id"] == event_id]


async def test_an_event_is_delivered_once_and_then_a_duplicate(
    client: httpx.AsyncClient, svix: Svix
) -> None:
    """200 both times, one message, and both answers name it."""
    status, told = await post(client, event("evt_twice"))
    again, told_again = await post(client, event("evt_twice"))
    assert (status, told["outcome"]) == (200, "delivered")
    assert (again, told_again["outcome"]) == (200, "duplicate")
    [message] = held(svix, "evt_twice")
    assert told["svix_message_id"] == told_again["svix_message_id"] == message["id"]


async def test_the_payload_arrives_value_for_value(client: httpx.AsyncClient, svix: Svix) -> None:
    """What Svix holds equals what was sent: unknown fields, unicode, big integers, key order."""
    sent = event(
        "evt_equal",
        time="2026-11-24T09:15:01.000Z",
        unheard_of={"deep": [[{"er": None}], True, -0.0, 1e-7, 0.1]},
        unicode='Zoë 東京 🎉 \u0000\u2028 "\\/',
        big=12345678901234567890123456789012345678901234567890,
        previousData={"z": 1, "a": 2},
    )
    assert (await post(client, sent))[0] == 200
    [message] = held(svix, "evt_equal")
    assert json.dumps(message["payload"]) == json.dumps(sent)


async def test_all_three_bodies_are_one_event(client: httpx.AsyncClient, svix: Svix) -> None:
    """Wrapped, unwrapped and bare, the same event is delivered the first time alone."""
    body = json.dumps(event("evt_bodies")).encode()
    headers = {"x-goog-pubsub-message-id": "2", "content-type": "text/plain"}
    answers = [
        await post(client, wrapped(body, "1")),
        await post(client, body, **headers),
        await post(client, body),
    ]
    outcomes = [(status, told["outcome"]) for status, told in answers]
    assert outcomes == [(200, "delivered"), (200, "duplicate"), (200, "duplicate")]
    assert len(held(svix, "evt_bodies")) == 1


async def test_of_a_hundred_posts_at_once_one_delivers(
    client: httpx.AsyncClient, svix: Svix
) -> None:
    """One message; the others are duplicates or told that it is in progress."""
    svix.control.conduct(latency=0.2)
    posts = (post(client, event("evt_hundred")) for _ in range(100))
    outcomes = Counter(told["outcome"] for _, told in await asyncio.gather(*posts))
    assert outcomes["delivered"] == 1
    assert outcomes["duplicate"] + outcomes["in_progress"] == 99
    assert outcomes["in_progress"] > 0
    assert len(held(svix, "evt_hundred")) == 1


async def test_a_claim_that_is_held_answers_409(client: httpx.AsyncClient, svix: Svix) -> None:
    """While Svix hangs the second delivery is told that the first is at it."""
    svix.control.inject("hang")
    posts = [asyncio.create_task(post(client, event("evt_held"))) for _ in range(2)]
    answered, holding = await asyncio.wait(posts, return_when=asyncio.FIRST_COMPLETED)
    [(status, told)] = [task.result() for task in answered]
    assert (status, told["outcome"]) == (409, "in_progress")
    svix.control.clear_faults()
    [(status, told)] = await asyncio.gather(*holding)
    assert (status, told["outcome"]) == (200, "delivered")


@pytest.mark.parametrize(
    ("fault", "by_hand", "pushed", "outcome"),
    [
        ({"status": 401, "body": "json"}, 500, 500, "misconfigured"),
        ({"status": 302, "headers": {"Location": "/elsewhere"}}, 500, 500, "misconfigured"),
        ({"status": 413}, 422, 200, "rejected"),
        ({"status": 400, "body": "json"}, 422, 200, "rejected"),
        ({"status": 429, "headers": {"Retry-After": "3600"}}, 429, 429, "rate_limited"),
    ],
)
async def test_what_svix_refuses_is_answered_as_the_table_says(
    tmp_path: Path, svix: Svix, *, fault: dict[str, Any], by_hand: int, pushed: int, outcome: str
) -> None:
    """The status by hand and pushed; only what can never succeed is parked; then it is not sent."""
    with function(
        svix.url, LEDGER=f"sqlite:{tmp_path}/ledger.db", REQUEST_BUDGET_SECONDS="25"
    ) as relay:
        async with httpx.AsyncClient(base_url=relay.url, timeout=60) as client:
            svix.control.inject("status", **fault)
            name = f"evt_refused_{fault['status']}"
            body = json.dumps(event(name)).encode()
            status, told = await post(client, body)
            assert (status, told["outcome"]) == (by_hand, outcome)
            assert "dead_letter" not in told
            status, told = await post(client, wrapped(body, "1"))
            assert (status, told["outcome"]) == (pushed, outcome)
            assert ("dead_letter" in told) == (outcome == "rejected")
    assert held(svix, name) == []


async def test_two_first_events_that_race_for_one_application_are_both_delivered(
    client: httpx.AsyncClient, svix: Svix
) -> None:
    """409 without a message to show for it: sent again, under the same key."""
    svix.control.inject("race", times=1)
    names = ["evt_race_1", "evt_race_2"]
    posts = [post(client, event(name, project="newcomer")) for name in names]
    answers = await asyncio.gather(*posts)
    assert [(status, told["outcome"]) for status, told in answers] == [(200, "delivered")] * 2
    assert [len(held(svix, name)) for name in names] == [1, 1]


async def test_a_lost_answer_is_made_good_within_the_request(
    client: httpx.AsyncClient, svix: Svix
) -> None:
    """Svix has it, the connection broke: the resend is absorbed by the idempotency key."""
    svix.control.inject("lose_answer", times=1)
    status, told = await post(client, event("evt_lost_answer"))
    assert (status, told["outcome"]) == (200, "delivered")
    [message] = held(svix, "evt_lost_answer")
    assert told["svix_message_id"] == message["id"]


async def test_unusable_answers_are_unavailable_and_the_redelivery_delivers(
    tmp_path: Path, svix: Svix
) -> None:
    """500 within the budget, the claim released: the next delivery sends at once."""
    with function(
        svix.url, LEDGER=f"sqlite:{tmp_path}/ledger.db", REQUEST_BUDGET_SECONDS="25"
    ) as relay:
        async with httpx.AsyncClient(base_url=relay.url, timeout=60) as client:
            svix.control.inject("status", status=503, body="html")
            status, told = await post(client, event("evt_down"))
            assert (status, told["outcome"]) == (500, "unavailable")
            svix.control.clear_faults()
            async with asyncio.timeout(30):
                while (await post(client, event("evt_down")))[0] != 200:
                    pass  # refused at once while paused, so this is a second or so
    assert len(held(svix, "evt_down")) == 1


async def test_a_ledger_that_fails_answers_500_and_sends_nothing(
    tmp_path: Path, svix: Svix
) -> None:
    """Without a claim nothing goes to Svix, and nothing is acknowledged."""
    (tmp_path / "ledger.db").write_bytes(b"no database at all, " * 100)
    with function(svix.url, LEDGER=f"sqlite:{tmp_path}/ledger.db") as relay:
        async with httpx.AsyncClient(base_url=relay.url, timeout=60) as client:
            status, told = await post(client, event("evt_no_ledger"))
            assert (status, told["outcome"]) == (500, "unavailable")
            status, told = await post(client, wrapped(b"no event", "1"))
            assert (status, told["outcome"]) == (500, "malformed")
    assert held(svix, "evt_no_ledger") == []


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", {}, 400),
        (b"{", {}, 400),
        (b"[1]", {}, 400),
        (b'{"id": "evt_1"}', {}, 400),
        (b'{"id": NaN}', {}, 400),
        (b'{"n": 1E400}', {}, 400),
        (b"[" * 100_000, {}, 400),
        (b'{"n": ' + b"9" * 5000 + b"}", {}, 400),
        (json.dumps(event("evt_s", data="\ud800")).encode(), {}, 400),
        (json.dumps(event("evt_p", project="../..")).encode(), {}, 400),
        (json.dumps(event("evt_p", project="a/b?x=1")).encode(), {}, 400),
        (json.dumps(event("msg_1")).encode(), {}, 400),
        (json.dumps(event("evt_t")).encode(), {"content-type": "text/plain"}, 415),
        (
            gzip.compress(json.dumps(event("evt_z")).encode(), mtime=0),
            {"content-encoding": "gzip"},
            415,
        ),
        (b'"' + b"x" * 3 * MIB + b'"', {}, 413),
    ],
)
async def test_what_is_no_event_is_malformed(
    client: httpx.AsyncClient, body: bytes, headers: dict[str, str], status: int
) -> None:
    """The status by hand; pushed, whatever is small enough to be read is parked and acked."""
    got, told = await post(client, body, **headers)
    assert (got, told["outcome"]) == (status, "malformed")
    if body and status == 400:
        got, told = await post(client, wrapped(body, "7"))
        assert (got, told["outcome"]) == (200, "malformed")
        assert told["dead_letter"]


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
    """404 elsewhere, 405 with `Allow` here."""
    answer = await client.request(method, path)
    assert answer.status_code == status
    assert answer.headers.get("allow") == ("POST" if status == 405 else None)


async def test_40_mb_are_refused_after_2(relay: Function) -> None:
    """413 as soon as 2 MiB have come: what is sent after that is not awaited."""
    port = int(relay.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /notifications HTTP/1.1\r\nHost: x\r\nContent-Length: {40 * MIB}\r\n\r\n"
    writer.write(head.encode() + b" " * (2 * MIB + 1))
    async with asyncio.timeout(30):  # the rest never comes, so an answer means it was not awaited
        assert (await reader.readline()).split()[1] == b"413"
    writer.close()


def test_the_readmes_loop_ends_well_twice(relay: Function, svix: Svix) -> None:
    """`curl --fail` over the sample events, two times: exit 0 and one message for each event."""
    loop = (
        "for f in local/events/*.json; do curl --silent --data @$f"
        f" -H 'Content-Type: application/json' --fail {relay.notifications} || exit 1; done"
    )
    for _ in range(2):
        subprocess.run(["/bin/sh", "-c", loop], cwd=ROOT, check=True, capture_output=True)  # noqa: S603 - our own words
    for path in (ROOT / "local" / "events").glob("*.json"):
        sent = json.loads(path.read_bytes())
        [message] = held(svix, sent["id"])
        assert message["payload"] == sent


def test_a_wrong_configuration_ends_the_start_with_one_message(tmp_path: Path) -> None:
    """Every fault in one message, no stack trace, a non-zero exit."""
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


async def test_sigterm_frees_all_who_wait(tmp_path: Path, svix: Svix) -> None:
    """Hundreds wait for a turn: all are answered 500, their claims released, the process ends."""
    file = tmp_path / "ledger.db"
    svix.control.conduct(rate=0.001, burst=1)
    names = [f"evt_term_{number}" for number in range(ALL_WAITING)]
    limits = httpx.Limits(max_connections=None)
    async with contextlib.AsyncExitStack() as stack:
        relay = stack.enter_context(function(svix.url, LEDGER=f"sqlite:{file}"))
        client = httpx.AsyncClient(base_url=relay.url, timeout=60, limits=limits)
        await stack.enter_async_context(client)
        posts = [asyncio.create_task(post(client, event(name))) for name in names]
        async with asyncio.timeout(30):
            while await asyncio.to_thread(claims, file, "claimed") < NEARLY_ALL:  # noqa: ASYNC110 - a file has no event
                await asyncio.sleep(0.05)
        relay.server.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):  # Cloud Run kills after it
            answers = await asyncio.gather(*posts, return_exceptions=True)
            await asyncio.to_thread(relay.server.process.wait)
    outcomes = Counter(
        answer[1]["outcome"] if isinstance(answer, tuple) else repr(answer) for answer in answers
    )
    assert outcomes["unavailable"] >= NEARLY_ALL, outcomes
    assert claims(file, "released") >= NEARLY_ALL
    assert claims(file, "claimed") == 0
