"""Bad input in bulk: generated requests against the real server, answered and forgotten.

SOAK=1 sends all 100,000, else a tenth. A failure names the request's number, from which
`request(SEED, number)` makes it again.
"""

import asyncio
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import aiohttp
import psutil
import pytest
import yarl

from tests.function import Function, function, simulator
from tests.fuzz.generator import Request, request, requests

SEED = 20261124
COUNT = 100_000 if os.environ.get("SOAK") == "1" else 10_000
WARM_UP = COUNT // 4
IN_FLIGHT = 16
BUDGET = 25.0
GROWTH = 20 * 1024 * 1024
ANSWERS = {200, 400, 404, 405, 409, 413, 415}


def test_the_same_seed_makes_the_same_requests() -> None:
    """So that a failure repeats; and another seed makes others."""
    assert list(requests(SEED, 50)) == [request(SEED, number) for number in range(50)]
    assert list(requests(SEED, 50)) != list(requests(SEED + 1, 50))


async def test_no_request_breaks_the_function(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No 500, no crash, none over its budget, no memory kept; every answer is one of the table."""
    statuses: Counter[int] = Counter()
    slowest = 0.0
    with (
        simulator() as svix,
        function(
            svix.url, LEDGER=f"sqlite:{tmp_path}/ledger.db", REQUEST_BUDGET_SECONDS=f"{BUDGET:g}"
        ) as relay,
    ):
        stream = requests(SEED, COUNT)
        async with aiohttp.ClientSession() as client:

            async def send_on(part: Iterable[Request]) -> None:
                nonlocal slowest
                for one in part:
                    status, seconds = await _send(client, relay, one)
                    statuses[status] += 1
                    slowest = max(slowest, seconds)

            await send_on(itertools.islice(stream, 1))
            [worker] = psutil.Process(relay.server.pid).children()
            warm_up = itertools.islice(stream, WARM_UP)
            await asyncio.gather(*[send_on(warm_up) for _ in range(IN_FLIGHT)])
            warm = worker.memory_info().rss
            rest = itertools.islice(stream, COUNT)
            await asyncio.gather(*[send_on(rest) for _ in range(IN_FLIGHT)])
            growth = worker.memory_info().rss - warm
        [still] = psutil.Process(relay.server.pid).children()
        logged = len(relay.lines())
    with capsys.disabled():
        print(  # noqa: T201 - the figures are the suite's result
            f"\nfuzz: seed {SEED}, {sum(statuses.values()):,} requests, {dict(statuses)}, "
            f"slowest {slowest:.2f} s, memory {growth / 2**20:+.1f} MB after {WARM_UP:,}"
        )
    assert still.pid == worker.pid, "the worker crashed"
    assert sum(statuses.values()) == COUNT
    assert logged == sum(n for status, n in statuses.items() if status not in {404, 405})
    assert growth <= GROWTH


async def _send(client: aiohttp.ClientSession, relay: Function, one: Request) -> tuple[int, float]:
    """The answer's status, and the seconds it took."""
    url = yarl.URL(f"{relay.url}{one.path}", encoded=True)
    began = time.monotonic()
    async with asyncio.timeout(BUDGET):
        answer = await client.request(one.method, url, headers=one.headers, data=one.body)
        body = await answer.read()
    where = f"request({SEED}, {one.number})"
    assert answer.status in ANSWERS, f"{where} was answered {answer.status}"
    if one.method != "HEAD":
        assert isinstance(json.loads(body), dict), where
    return answer.status, time.monotonic() - began
