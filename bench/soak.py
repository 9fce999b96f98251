"""Many events through one process: its memory, connections, tasks and speed, tenth by tenth.

`python -m bench.soak` sends 200,000 events and prints what the function holds after each tenth. The
emulator and the simulator are emptied after each tenth, because they are not what is measured.
"""

import argparse
import asyncio
import contextlib
import sys
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass

import uvloop
from pyreqwest.client import SyncClientBuilder

from bench import load
from bench.functions import ROOT, Function, function, simulator
from local import emulators
from local.control import Control

EVENTS, TENTHS, IN_FLIGHT = 200_000, 10, 32
PROJECT = f"soak-{uuid.uuid4().hex[:8]}"


@dataclass(frozen=True, slots=True)
class Tenth:
    """What the function held at rest after this tenth, and what the tenth's events cost."""

    megabytes: float
    descriptors: int
    connections: int
    tasks: int
    objects: int
    ms: float
    """Milliseconds of processor time per event."""
    rate: float
    p99_ms: float


async def run(
    emulator: str, events: int = EVENTS, say: Callable[[str], None] = lambda _: None
) -> list[Tenth]:
    """Send all events. Raises `RuntimeError` if one is not delivered exactly once."""
    settings = {"FIRESTORE_EMULATOR_HOST": emulator, "GOOGLE_CLOUD_PROJECT": PROJECT}
    tenths = []
    with (
        simulator() as svix_url,
        function(ROOT / "bench" / "inspected.py", svix_url, settings) as relay,
        contextlib.closing(Control(svix_url)) as control,
    ):
        for number in range(TENTHS):
            tenths.append(await _tenth(relay, f"{number}_", events // TENTHS))
            await asyncio.to_thread(_check_and_empty, control, emulator, events // TENTHS)
            say(line(number, tenths[-1]))
    return tenths


async def _tenth(relay: Function, run: str, count: int) -> Tenth:
    before = relay.processor_seconds()
    async with load.client() as session:
        done = await load.closed(session, relay.notifications, load.events(run, count), IN_FLIGHT)
    if set(done.statuses) != {200}:
        raise RuntimeError(f"not all were delivered: {done.statuses}\n{relay.server.output()}")
    used = relay.processor_seconds() - before
    async with load.client() as session:
        held = await (await session.get(f"{relay.url}/inspect").build().send()).json()
    processes = relay.processes()
    return Tenth(
        megabytes=relay.megabytes(),
        descriptors=sum(process.num_fds() for process in processes),
        connections=sum(len(process.net_connections()) for process in processes),
        **held,
        ms=1000 * used / count,
        rate=done.rate,
        p99_ms=1000 * done.latency(0.99),
    )


def _check_and_empty(control: Control, emulator: str, count: int) -> None:
    summary = control.summary()
    if summary["events"] != count or summary["stored_twice"]:
        raise RuntimeError(f"{count} should be in Svix, each once: {summary}")
    control.reset()
    documents = f"emulator/v1/projects/{PROJECT}/databases/(default)/documents"
    with SyncClientBuilder().no_proxy().error_for_status().build() as client:
        client.delete(f"http://{emulator}/{documents}").build().send()


HEADER = "tenth     MB  descriptors  connections  tasks  objects  ms/event  events/s  p99 ms"


def line(number: int, tenth: Tenth) -> str:
    """One row of the table."""
    return (
        f"{number + 1:>5}{tenth.megabytes:>7.1f}{tenth.descriptors:>13}{tenth.connections:>13}"
        f"{tenth.tasks:>7}{tenth.objects:>9}{tenth.ms:>10.2f}{tenth.rate:>10.0f}"
        f"{tenth.p99_ms:>8.0f}"
    )


def growth(tenths: list[Tenth]) -> dict[str, float]:
    """The last tenth's figures divided by the second tenth's.

    The first tenth is left out, because some things are loaded with the first events.
    """
    second, last = asdict(tenths[1]), asdict(tenths[-1])
    return {name: round(last[name] / max(1e-9, second[name]), 3) for name in second}


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--events", type=int, default=EVENTS, help="(default: %(default)s)")
    arguments = parser.parse_args(argv)
    if lacking := emulators.missing():
        print(lacking, file=sys.stderr)
        return 1
    print(HEADER, flush=True)
    with (
        emulators.firestore_emulator() as (address, _),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        tenths = runner.run(run(address, arguments.events, lambda said: print(said, flush=True)))
    print("\nThe last tenth divided by the second tenth:", growth(tenths))
    return 0


if __name__ == "__main__":
    sys.exit(main())
