"""Pushes over HTTP to real functions, with the push simulator and the Svix simulator.

The drain here is a tenth of the one that `bench/drain.py` runs in virtual time: 2,000 events
against 50 calls a second.
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
GIVE_UP_AFTER = 120.0
"""Seconds after which the obvious function is stopped."""
IN_FLIGHT = 200
"""Requests in flight when the start of an instance is measured."""

Start = Callable[[str, contextlib.ExitStack], list[str]]
"""Starts functions that call the Svix of this URL. Returns the functions' URLs."""

_directories = itertools.count()


def relays(directory: Path, count: int = 1) -> Start:
    """Start `count` instances of the relay. They share one SQLite ledger."""

    def start(svix_url: str, stack: contextlib.ExitStack) -> list[str]:
        ledger = directory / f"ledger-{next(_directories)}.db"
        environment = {"LEDGER": f"sqlite:{ledger}"}
        return [
            stack.enter_context(function(RELAY, svix_url, environment)).url for _ in range(count)
        ]

    return start


def obvious(directory: Path, threads: int | None = None) -> Start:
    """Start the obvious function, with this number of threads or its framework's default."""

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
    """Yields a function that pushes a message to the instance with the fewest pushes."""
    busy = dict.fromkeys(urls, 0)
    # Each push has its own connection. On a busy machine, the server may close an idle connection
    # just as the next push uses it.
    async with load.client(keep_alive=False) as client:

        async def deliver(number: int) -> bool:
            url = min(busy, key=busy.__getitem__)
            busy[url] += 1
            body = json.dumps(push(number, project=project_of(number))).encode()
            try:
                answer = await load.post(client, f"{url}/notifications", body)
            except PyreqwestError:
                return False  # to Pub/Sub, a push without an answer is a nack
            else:
                return answer.status in {200, 204}
            finally:
                busy[url] -= 1

        yield deliver


@dataclass(slots=True)
class Figures:
    """The figures of one drain. A drain without a goal is there for comparison."""

    name: str
    used: float
    refused: float
    nacks: int
    seconds: float
    delivered: int
    twice: int
    goal: float | None
    """At least this share of the limit must be used."""
    most_refused: float
    """At most this share of the calls may be refused. The first burst's refusals, about thirty for
    each instance, are a large part of 2,000."""

    @property
    def is_met(self) -> bool:
        """Whether every goal is met."""
        return self.goal is None or (
            self.used >= self.goal
            and self.refused <= self.most_refused
            and not self.nacks
            and not self.twice
            and self.delivered == EVENTS
        )

    def row(self) -> list[str]:
        """One row of the table."""
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
    "in Svix twice",
    "met",
]


async def drain(
    name: str, start: Start, goal: float | None = None, most_refused: float = 0.03
) -> Figures:
    """Push a backlog until it is delivered, or until it is given up."""
    print(f"  {name} ...", flush=True)
    async with Simulator(
        token=TOKEN, latency=LATENCY, rate=RATE, burst=BURST, retry_after="seconds"
    ) as svix:
        with contextlib.ExitStack() as stack:
            urls = await asyncio.to_thread(start, svix.url, stack)
            async with pushing_to(urls) as deliver:
                subscription = Subscription(deliver, Policy(min_window=3000))
                await subscription.run(
                    [Arrival(0.0, number) for number in range(EVENTS)], GIVE_UP_AFTER
                )
        seconds = max(subscription.acked.values()) if subscription.is_done else GIVE_UP_AFTER
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
    """The seconds for 1,000 events, 200 in flight: of a new instance, and of the same when warm.

    One event goes first, so that the instance makes its clients: only the pacing is measured.
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
    """Make all drains, one after the other."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        cold, warm = await cold_start(relays(directory))
        print(
            f"\n1,000 events at {IN_FLIGHT} in flight, Svix without a limit: {cold:.1f} s cold, "
            f"{warm:.1f} s warm. Cold is {warm / cold:.2f} times as fast (goal: at least 0.9)\n"
        )
        results = [await drain("relay", relays(directory), 0.95)]
        if not quick:
            results += [
                await drain("relay, two instances", relays(directory, 2), 0.9, 0.04),
                await drain("obvious function", obvious(directory)),
                await drain("obvious function, 200 threads", obvious(directory, 200)),
            ]
        return results
