"""How one customer's events delay another's, over HTTP: the relay and the obvious function.

It repeats a part of what `bench/neighbours.py` does in virtual time. The other projects' events are
posted directly, not through the push simulator, so that they are timed from their push. Times are
in seconds.
"""

import asyncio
import contextlib
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from bench.functions import TOKEN
from bench.pushed import Start, obvious, pushing_to, relays
from local.behaviour import Fault
from local.push import Arrival, Policy, Subscription
from local.simulator import Simulator

BAD = 1_000_000
"""Messages with this number or a higher one belong to the project that fails or floods."""
BUSY = Policy(min_window=3000, initial_window=3000)
SECONDS = 60.0
"""The length of a run with poison or with a flood."""
OUTAGE = 45.0

HEADER = ["Over HTTP", "relay", "obvious function", "goal", "met"]
Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Row:
    """One figure, measured for both functions."""

    name: str
    relay: float
    obvious: float
    goal: float | None
    at_least: bool = False

    @property
    def is_met(self) -> bool:
        """Whether the goal is met."""
        if self.goal is None:
            return True
        return self.relay >= self.goal if self.at_least else self.relay <= self.goal

    def cells(self) -> list[str]:
        """One row of the table."""
        sign = ">=" if self.at_least else "<="
        goal = "" if self.goal is None else f"{sign} {self.goal:g}"
        met = "" if self.goal is None else "yes" if self.is_met else "NO"
        return [self.name, f"{self.relay:.2f}", f"{self.obvious:.2f}", goal, met]


def project_of(message: int) -> str:
    """The project of a message: one of twenty, or the one that fails or floods."""
    return "bad" if message >= BAD else f"project-{message % 20}"


async def beside(
    start: Start,
    bad: int,
    a_second: float,
    conduct: Callable[[Simulator], Coroutine[Any, Any, None]],
    rate: float | None = None,
) -> Figures:
    """Push `bad` events of one project at once, and post the others at a steady rate beside them.

    `conduct` changes how Svix behaves during the run.
    """
    async with Simulator(token=TOKEN, latency=0.1, rate=rate, retry_after="seconds") as simulator:
        with contextlib.ExitStack() as stack:
            urls = await asyncio.to_thread(start, simulator.url, stack)
            async with pushing_to(urls, project_of) as deliver:
                loop = asyncio.get_running_loop()
                seconds: list[float] = []
                nacks = 0

                async def post(message: int) -> None:
                    nonlocal nacks
                    started = loop.time()
                    nacks += not await deliver(message)
                    seconds.append(loop.time() - started)

                conducting = asyncio.create_task(conduct(simulator))
                flood = Subscription(deliver, BUSY)
                bads = [Arrival(0.0, BAD + number) for number in range(bad)]
                pushing = asyncio.create_task(flood.run(bads, SECONDS))
                started = loop.time()
                async with asyncio.TaskGroup() as posts:
                    for number in range(int(a_second * SECONDS)):
                        await asyncio.sleep(started + number / a_second - loop.time())
                        posts.create_task(post(number))
                await pushing
                await conducting
        ordered = sorted(seconds)
        taken = sum(
            call.status == HTTPStatus.ACCEPTED and call.at <= started + SECONDS
            for call in simulator.calls
        )
        return {
            "p99": ordered[int(0.99 * len(ordered))],
            "nacks": nacks,
            "used": taken / (50 + (rate or 0) * SECONDS),
        }


async def poison(start: Start, kind: str) -> Figures:
    """Twenty events of one project always fail. The others come at 10 a second."""

    async def conduct(simulator: Simulator) -> None:
        simulator.inject(Fault(kind, app="bad"))

    return await beside(start, 20, 10.0, conduct)


async def flood(start: Start) -> Figures:
    """One project publishes more than Svix takes in a minute. The others come at 1 a second."""

    async def conduct(_simulator: Simulator) -> None:
        pass

    return await beside(start, 4000, 1.0, conduct, rate=50.0)


async def outage(start: Start) -> Figures:
    """Svix fails for 45 s, in three ways in turn, while 20 events a second are published."""
    begins, a_second = 10.0, 20
    ends = begins + OUTAGE
    async with Simulator(token=TOKEN, latency=0.1) as simulator:
        with contextlib.ExitStack() as stack:
            urls = await asyncio.to_thread(start, simulator.url, stack)
            async with pushing_to(urls, project_of) as deliver:
                subscription = Subscription(deliver, BUSY)

                async def fail() -> None:
                    await asyncio.sleep(begins)
                    for kind in ("status", "hang"):
                        simulator.inject(Fault(kind, method="*"))
                        await asyncio.sleep(OUTAGE / 3)
                        simulator.clear_faults()
                    await simulator.stop_listening()
                    await asyncio.sleep(OUTAGE / 3)
                    await simulator.start_listening()

                failing = asyncio.create_task(fail())
                count = int((ends + 20) * a_second)
                arrivals = [Arrival(number / a_second, number) for number in range(count)]
                await subscription.run(arrivals, 300.0)
                await failing
        late = {each.message for each in arrivals if ends - 30 <= each.at < ends}
        held = Counter((message.app, message.event_id) for message in simulator.messages)
        acked = subscription.acked.values()
        return {
            "missing": count - len(held),
            "twice": sum(times > 1 for times in held.values()),
            "late nacks": sum(message in late for _, message in subscription.nacked),
            "nacks": len(subscription.nacked),
            "full rate": sum(ends + 10 <= at < ends + 20 for at in acked) / 10,
        }


async def measure() -> list[Row]:
    """All rows, one after the other. This takes about ten minutes."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        functions: Sequence[Start] = (relays(Path(name)), obvious(Path(name), 200))
        for kind, title in (("status", "500"), ("hang", "hanging")):
            ours, theirs = [await poison(start, kind) for start in functions]
            what = f"20 poison events ({title}), the others at 10/s"
            rows += [
                Row(f"{what}: others' p99 from push, s", ours["p99"], theirs["p99"], 1.0),
                Row(f"{what}: others' nacks", ours["nacks"], theirs["nacks"], 0),
            ]
        ours, theirs = [await flood(start) for start in functions]
        what = "a flood of one project, the others at 1/s"
        rows += [
            Row(f"{what}: others' p99 from push, s", ours["p99"], theirs["p99"], 2.0),
            Row(
                f"{what}: share of the limit used",
                ours["used"],
                theirs["used"],
                0.95,
                at_least=True,
            ),
        ]
        ours, theirs = [await outage(start) for start in functions]
        outage_rows: tuple[tuple[str, str, float | None], ...] = (
            ("missing", "missing in Svix", 0),
            ("twice", "in Svix twice", 0),
            ("late nacks", "nacks of events published in its last 30 s", 0),
            ("nacks", "all nacks", None),
        )
        what = "an outage of 45 s, 20 events a second"
        rows += [
            Row(f"{what}: {name}", ours[key], theirs[key], goal) for key, name, goal in outage_rows
        ]
        title = f"{what}: acks a second, 10 to 20 s after it"
        rows.append(Row(title, ours["full rate"], theirs["full rate"], 19.0, at_least=True))
    return rows
