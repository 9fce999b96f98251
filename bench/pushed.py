"""Pushing over HTTP: real functions, the push simulator, the Svix simulator; and the drain so.

A tenth of what `bench/drain.py` does in virtual time: 2,000 events against 50 calls a second.
"""

import asyncio
import contextlib
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from pyreqwest.exceptions import PyreqwestError

from bench import load
from bench.functions import NAIVE, RELAY, TOKEN, function, push, simulator
from local.push import Arrival, Policy, Subscription
from local.simulator import Simulator

RATE, BURST, LATENCY = 50.0, 50.0, 0.1
EVENTS = 2000
GIVEN_UP = 120.0
"""Seconds after which the obvious function is stopped."""
IN_FLIGHT = 200
"""Requests at once where the start of an instance is measured."""

Start = Callable[[str, contextlib.ExitStack], list[str]]
"""Starts functions that call the Svix of this URL; their own URLs."""

_directories = itertools.count()


def relays(directory: Path, count: int = 1) -> Start:
    """So many instances of the relay, with one embedded ledger as they would share Firestore."""

    def start(svix_url: str, stack: contextlib.ExitStack) -> list[str]:
        ledger = directory / f"ledger-{next(_directories)}.db"
        environment = {"LEDGER": f"sqlite:{ledger}"}
        return [
            stack.enter_context(function(RELAY, svix_url, environment)).url for _ in range(count)
        ]

    return start


def obvious(directory: Path, threads: int | None = None) -> Start:
    """The obvious function, with its framework's default threads or so many."""

    def start(svix_url: str, stack: contextlib.ExitStack) -> list[str]:
        environment = {"NAIVE_LEDGER": str(directory / f"ledger-{next(_directories)}.db")}
        if threads is not None:
            environment["THREADS"] = str(threads)
        return [stack.enter_context(function(NAIVE, svix_url, environment)).url]

    return start


@contextlib.asynccontextmanager
async def pushing_to(
    urls: Sequence[str], project_of: Callable[[int], str] = lambda _: "acme"
) -> AsyncIterator[Callable[[int], Awaitable[bool]]]:
    """Delivers a message by its number, to the instance that has the fewest at work."""
    busy = dict.fromkeys(urls, 0)
    # A connection for each push: on a busy machine a kept one may be closed by the server just when
    # it is used.
    async with load.client(keep_alive=False) as client:

        async def deliver(number: int) -> bool:
            url = min(busy, key=busy.__getitem__)
            busy[url] += 1
            body = json.dumps(push(number, project=project_of(number))).encode()
            try:
                answer = await load.post(client, f"{url}/notifications", body)
            except PyreqwestError:
                return False  # a push that is not answered is a nack, as Pub/Sub sees it
            else:
                return answer.status in {200, 204}
            finally:
                busy[url] -= 1

        yield deliver


@dataclass(slots=True)
class Figures:
    """What one drain came to; where there is no goal, it is there to compare with."""

    name: str
    used: float
    refused: float
    nacks: int
    seconds: float
    delivered: int
    twice: int
    goal: float | None = None
    """At least this share of the limit."""
    most_refused: float = 0.03
    """Of the calls. The first burst's refusals, thirty or so an instance, weigh much in 2,000."""

    @property
    def is_met(self) -> bool:
        """Whether every goal is."""
        return self.goal is None or (
            self.used >= self.goal
            and self.refused <= self.most_refused
            and not self.nacks
            and not self.twice
            and self.delivered == EVENTS
        )

    def row(self) -> list[str]:
        """A line of the table."""
        goal = "" if self.goal is None else f">= {self.goal:.0%}"
        met = "" if self.goal is None else "yes" if self.is_met else "NO"
        return [
            self.name,
            f"{self.used:.1%}",
            goal,
            f"{self.refused:.2%}",
            f"{self.nacks:,}",
            f"{self.seconds:.0f}",
            f"{self.delivered:,}",
            str(self.twice),
            met,
        ]


HEADER = [
    "2,000 events over HTTP",
    "limit used",
    "goal",
    "refused",
    "nacks",
    "seconds",
    "delivered",
    "twice",
    "met",
]


async def drain(
    name: str, start: Start, goal: float | None = None, most_refused: float = 0.03
) -> Figures:
    """A backlog, until it is delivered or given up."""
    print(f"  {name} ...", flush=True)
    async with Simulator(
        token=TOKEN, latency=LATENCY, rate=RATE, burst=BURST, retry_after="seconds"
    ) as svix:
        with contextlib.ExitStack() as stack:
            urls = await asyncio.to_thread(start, svix.url, stack)
            async with pushing_to(urls) as deliver:
                subscription = Subscription(deliver, Policy(floor=3000))
                await subscription.run([Arrival(0.0, number) for number in range(EVENTS)], GIVEN_UP)
        seconds = max(subscription.acked.values()) if subscription.is_done else GIVEN_UP
        statuses = Counter(call.status for call in svix.calls)
        held = Counter(message.event_id for message in svix.messages)
        return Figures(
            name=name,
            used=len(held) / (BURST + RATE * seconds),
            refused=statuses[HTTPStatus.TOO_MANY_REQUESTS] / max(1, statuses.total()),
            nacks=len(subscription.nacked),
            seconds=seconds,
            delivered=len(held),
            twice=sum(count > 1 for count in held.values()),
            goal=goal,
            most_refused=most_refused,
        )


async def cold_start(start: Start) -> tuple[float, float]:
    """Seconds for 1,000 events, 200 at a time, of a new instance and of the same when warm.

    One event goes before, with which the instance makes its clients: here it is about the pacing.
    """
    with contextlib.ExitStack() as stack:
        svix_url = stack.enter_context(simulator("--latency-ms", str(1000 * LATENCY)))
        (url,) = start(svix_url, stack)
        seconds = []
        for run, count in (("first", 1), ("cold", 1000), ("warm", 1000), ("warmer", 1000)):
            async with load.client() as session:
                bodies = load.events(run, count)
                result = await load.closed(session, f"{url}/notifications", bodies, IN_FLIGHT)
            seconds.append(result.seconds)
        return seconds[1], min(seconds[2:])


async def measure(*, quick: bool) -> list[Figures]:
    """All drains, one after the other."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        cold, warm = await cold_start(relays(directory))
        print(
            f"\n1,000 events at {IN_FLIGHT} in flight, Svix without a limit: {cold:.1f} s cold, "
            f"{warm:.1f} s warm: {warm / cold:.2f} of it (goal: 0.9)\n"
        )
        results = [await drain("relay", relays(directory), 0.95)]
        if not quick:
            results += [
                await drain("relay, two instances", relays(directory, 2), 0.9, 0.04),
                await drain("obvious function", obvious(directory)),
                await drain("obvious function, 200 threads", obvious(directory, 200)),
            ]
        return results
