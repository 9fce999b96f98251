"""A crash with 500 pushes at the relay: how long does it take until every event is delivered?

The worker is killed (SIGKILL) while as many events are claimed and in flight as the pacer allows.
The server's master starts another worker. The broken connections are nacks, and after 10 s the
retry policy redelivers the messages. The dead worker's claims become free when their leases of 30 s
end. So the last event should be delivered within 35 s of the first redelivery. Push back-off adds
to that: 500 nacks at once raise it to its maximum of a minute.
"""

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.functions import RELAY, RESULTS, TOKEN, function
from bench.pushed import pushing_to
from bench.table import markdown
from local import emulators
from local.push import Arrival, Policy, Subscription
from local.simulator import Simulator
from relay.ledger import Archive, State
from relay.ledger.firestore import FirestoreLedger
from relay.ledger.sqlite import SqliteLedger

WARM_UP = 300
"""Events before the crash. The pacer's window grows by one with each event that Svix takes."""
WITHIN = 35.0
"""Seconds from the first redelivery to the last delivery: a lease of 30, and a moment to send."""
_SVIX_HANGS = 5.0  # seconds that Svix takes to answer at the moment of the crash
_UNTIL_IN_FLIGHT = 3.0  # seconds until as many calls are in flight as the pacer allows


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one crash. Times are in seconds."""

    name: str
    pushes: int
    claimed: int
    """Events that were claimed and in flight when the worker died."""
    last_after: float
    """From the first redelivery to the last delivery."""
    delivered: int
    twice: int
    goal: float | None = None

    @property
    def is_met(self) -> bool:
        """Whether no event is lost or doubled, and all were delivered in time."""
        in_time = self.goal is None or self.last_after <= self.goal
        return in_time and self.delivered == self.pushes and not self.twice

    def row(self) -> list[str]:
        """One row of the table."""
        goal = "" if self.goal is None else f"<= {self.goal:g}"
        counts = [str(self.pushes), str(self.claimed), f"{self.last_after:.1f}", goal]
        return [self.name, *counts, str(self.twice), "yes" if self.is_met else "NO"]


HEADER = [
    "A worker is killed",
    "pushes",
    "claimed at the kill",
    "first redelivery to last delivery, s",
    "goal",
    "in Svix twice",
    "met",
]


@contextlib.contextmanager
def firestore() -> Iterator[dict[str, str]]:
    """The settings of a ledger in Firestore's emulator."""
    with emulators.firestore_emulator() as (address, _):
        yield {"FIRESTORE_EMULATOR_HOST": address, "GOOGLE_CLOUD_PROJECT": "crash"}


def archive(settings: dict[str, str]) -> Archive:
    """Open the function's ledger, to read it here."""
    if path := settings.get("LEDGER", "").removeprefix("sqlite:"):
        return SqliteLedger(Path(path), create=False)
    os.environ["FIRESTORE_EMULATOR_HOST"] = settings["FIRESTORE_EMULATOR_HOST"]
    return FirestoreLedger.connect(settings["GOOGLE_CLOUD_PROJECT"], "(default)")


async def crash(
    name: str,
    ledger: dict[str, str],
    pushes: int,
    policy: Policy,
    goal: float | None = None,
    source: Path = RELAY,
) -> Figures:
    """Push, kill, and wait until every event is acknowledged. `source` is the function's file."""
    loop = asyncio.get_running_loop()
    async with Simulator(token=TOKEN) as svix:
        with function(source, svix.url, ledger) as relay:
            redelivered: list[float] = []
            async with pushing_to([relay.url], lambda number: f"p{number % 20}") as push:

                async def deliver(number: int) -> bool:
                    if killed:
                        redelivered.append(loop.time())
                    return await push(number)

                killed: list[float] = []
                warm_up = Subscription(push, Policy(initial_window=50))
                await warm_up.run([Arrival(0.0, number) for number in range(WARM_UP)])
                svix.behaviour.latency = _SVIX_HANGS
                subscription = Subscription(deliver, policy)
                numbers = range(WARM_UP, WARM_UP + pushes)
                running = asyncio.create_task(
                    subscription.run([Arrival(0.0, number) for number in numbers])
                )
                await asyncio.sleep(_UNTIL_IN_FLIGHT)
                for worker in relay.processes()[1:]:
                    worker.kill()
                killed.append(loop.time())
                claimed = await _claimed(ledger)
                svix.behaviour.latency = 0.1
                await running
                last_after = loop.time() - redelivered[0]
        held = Counter(message.event_id for message in svix.messages)
    return Figures(
        name=name,
        pushes=pushes,
        claimed=claimed,
        last_after=last_after,
        delivered=len(held) - WARM_UP,
        twice=sum(count > 1 for count in held.values()),
        goal=goal,
    )


async def _claimed(ledger: dict[str, str]) -> int:
    opened = archive(ledger)
    try:
        return sum([record.state is State.CLAIMED async for record in opened.undelivered()])
    finally:
        await opened.close()


async def _run(pushes: int) -> list[Figures]:
    without, usual = Policy(initial_window=3000, max_pause=0.0), Policy(initial_window=3000)
    found: list[Figures] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        if lacking := emulators.missing():
            print(f"On the SQLite ledger, because Firestore's emulator can't run: {lacking}")
            ledgers = [{"LEDGER": f"sqlite:{folder}/{number}.db"} for number in range(2)]
        else:
            settings = stack.enter_context(firestore())
            ledgers = [settings | {"GOOGLE_CLOUD_PROJECT": f"crash-{n}"} for n in range(2)]
        for name, policy, goal, ledger in (
            ("without push back-off", without, WITHIN, ledgers[0]),
            ("with push back-off of up to 60 s", usual, None, ledgers[1]),
        ):
            print(f"  {name} ...", flush=True)
            found.append(await crash(name, ledger, pushes, policy, goal))
    return found


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns 0 if the goal is met."""
    parser = argparse.ArgumentParser(prog="python -m bench crash", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the pushes")
    pushes = 50 if parser.parse_args(argv).quick else 500
    figures = asyncio.run(_run(pushes))
    print(markdown(HEADER, [figure.row() for figure in figures]))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "crash.json").write_text(json.dumps([asdict(f) for f in figures], indent=2) + "\n")
    return 0 if all(figure.is_met for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
