"""Many generated bad requests: passed to the parser directly, and sent to the real server.

SOAK=1 runs all of them. Otherwise only the first ones run, always the same. A failure names the
request's number, and `request(SEED, number)` makes that request again.
"""

import asyncio
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from starlette.datastructures import Headers

from relay.envelope import EVENT_LIMIT, Refused, Source, read, read_again
from relay.outcome import Outcome
from tests.function import Function, function, simulator
from tests.fuzz.generator import Request, request, requests

SEED = 20261124
SOAK = os.environ.get("SOAK") == "1"
FULL = 100_000
READ = 500_000 if SOAK else 10_000
SENT = FULL if SOAK else 2_000  # to each of the two ledgers
WARM_UP = SENT // 4
IN_FLIGHT = 16
BUDGET = 30.0  # seconds
GROWTH = 20 * 1024 * 1024  # bytes
ANSWERS = {200, 400, 404, 405, 409, 413, 415, 422}


def test_the_same_seed_makes_the_same_requests() -> None:
    """So a failure can be repeated. Another seed makes other requests."""
    assert list(requests(SEED, 50)) == [request(SEED, number) for number in range(50)]
    assert list(requests(SEED, 50)) != list(requests(SEED + 1, 50))


@pytest.mark.time_limit(1_800 if SOAK else 120)
def test_every_request_is_an_event_or_refused(figures: Callable[[str], None]) -> None:
    """No other exception may be raised, and an event's text is JSON with the event's names.

    A replay of the kept body finds the same event, or the same fault.
    """
    kinds: Counter[str] = Counter()
    for one in requests(SEED, READ):
        headers = Headers(raw=[(name.encode(), value.encode()) for name, value in one.headers])
        try:
            event = read(one.body, headers, ("data.id",))
        except Refused as refused:
            assert refused.outcome in {Outcome.MALFORMED, Outcome.REJECTED}, one.number
            kinds["refused"] += 1
            if refused.source.pushed:
                assert _read_again(refused.source) == refused.detail, one.number
        except Exception as failure:
            raise AssertionError(f"request({SEED}, {one.number}) raised {failure!r}") from failure
        else:
            names = (event.id, event.type, event.project)
            payload = json.loads(event.text.decode())
            assert names == (payload["id"], payload["type"], payload["project"]), one.number
            kinds["pushed" if event.source.pushed else "by hand"] += 1
            named = "ce-specversion" in event.source.attributes
            kinds["in binary mode"] += named and event.text != event.source.data
            assert _read_again(event.source) == event.text, one.number
    figures(f"fuzz: {READ:,} requests read, seed {SEED}, {dict(kinds)}")
    assert min(kinds.values()) > READ / 50, "the generator made too few requests of one kind"


def _read_again(source: Source) -> bytes | str:
    """The result of a replay: an event's text, or the fault."""
    kept = json.loads(json.dumps(dict(source.attributes)))  # like a dead letter
    try:
        return read_again(source.data, source.form, kept, ("data.id",)).text
    except Refused as refused:
        return refused.detail


@pytest.fixture(params=["sqlite", "firestore"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The settings of an empty ledger."""
    if request.param == "sqlite":
        return {"LEDGER": f"sqlite:{tmp_path}/ledger.db"}
    settings: dict[str, str] = request.getfixturevalue("firestore")
    return settings


@pytest.mark.time_limit(1_800 if SOAK else 120)
async def test_no_request_breaks_the_function(
    ledger: dict[str, str], figures: Callable[[str], None]
) -> None:
    """No request causes a 500, a crash or a leak, exceeds its budget, or gets an unknown answer."""
    statuses: Counter[int] = Counter()
    slowest = 0.0
    with (
        simulator() as svix,
        function(svix.url, REQUEST_BUDGET_SECONDS=f"{BUDGET:g}", **ledger) as relay,
    ):
        stream = requests(SEED, SENT)

        async def send_on(part: Iterable[Request]) -> None:
            nonlocal slowest
            for one in part:
                began = time.monotonic()
                async with asyncio.timeout(BUDGET):
                    statuses[await _send(relay, one)] += 1
                slowest = max(slowest, time.monotonic() - began)

        await send_on(itertools.islice(stream, 1))
        [worker] = psutil.Process(relay.server.pid).children()
        warm_up = itertools.islice(stream, WARM_UP)
        await asyncio.gather(*[send_on(warm_up) for _ in range(IN_FLIGHT)])
        warm = worker.memory_info().rss
        rest = itertools.islice(stream, SENT)
        await asyncio.gather(*[send_on(rest) for _ in range(IN_FLIGHT)])
        growth = worker.memory_info().rss - warm
        # Once this is answered, the requests that broke off are logged.
        await _send(relay, Request(-1, "GET", "/", [], b"", 0))
        [still] = psutil.Process(relay.server.pid).children()
        logged = len(relay.lines())
    figures(
        f"fuzz: {SENT:,} of {FULL:,} requests sent, seed {SEED}, {dict(statuses)}, "
        f"slowest {slowest:.2f} s, memory {growth / 2**20:+.1f} MB after {WARM_UP:,}"
    )
    assert still.pid == worker.pid, "the worker crashed"
    assert sum(statuses.values()) == SENT
    assert logged == sum(n for status, n in statuses.items() if status not in {404, 405})
    assert growth <= GROWTH


async def _send(relay: Function, one: Request) -> int:
    """Send a request. Returns the answer's status, or 408 if the sender disconnects."""
    at = urlsplit(relay.url)
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    head = [f"{one.method} {one.path} HTTP/1.1", "Host: relay", "Connection: close"]
    head += [f"Content-Length: {len(one.body)}", *(f"{n}: {v}" for n, v in one.headers)]
    writer.write("\r\n".join([*head, "", ""]).encode() + one.body[: one.sent])
    try:
        if one.breaks_off:
            writer.write_eof()
            await reader.read()
            return 408
        answer = await reader.read()
    except ConnectionResetError:
        # The server has refused the body unread and closed the connection. Bytes that arrive after
        # that reset the connection, and the answer may be lost.
        if one.path.partition("?")[0] != "/notifications":
            return 404
        if one.method != "POST":
            return 405
        assert len(one.body) > EVENT_LIMIT, f"request({SEED}, {one.number})"
        return 413
    finally:
        writer.close()
    where = f"request({SEED}, {one.number})"
    answer_head, _, body = answer.partition(b"\r\n\r\n")
    status = int(answer_head.split()[1])
    assert status in ANSWERS, f"{where} was answered {status}"
    if one.method != "HEAD":
        assert isinstance(json.loads(body), dict), where
    return status
