"""What large bodies and slow senders do to the function's memory and to small events beside them.

`python -m bench.memory` starts the function as a real process, with the settings that `deploy.sh`
gives 512 MiB, on the Firestore emulator and a Svix simulator:

- 300 bodies of 1 MiB at once while Svix refuses everything for 15 s, with and without small events
  beside them;
- 1,000 connections that send a byte a second, beside healthy traffic.

The memory of all the function's processes is sampled in two ways: shared pages count once (PSS,
which is what a container is charged for), or in each process (RSS). Where the machine allows a
control group, the function runs in one of 512 MiB, and the kernel's own count is shown too.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import uvloop
from pyreqwest.client import Client

from bench import load
from bench.cgroup import Group, limited
from bench.functions import RELAY, Function, function, simulator
from bench.table import Figure, show
from local import emulators
from local.control import Control

BODIES, MIB = 300, 2**20
REFUSED_SECONDS = 15.0
SMALL_RATE = 20.0  # events a second, far below what the machine can do
SLOW = 1000
LIMIT_MB, CONTAINER_MIB = 450, 512
SETTINGS = {"BODIES_MIB": "48", "REQUEST_BUDGET_SECONDS": "240"}


@dataclass(slots=True)
class Peak:
    """The most memory that was seen, in MB."""

    shared_once: float = 0.0
    resident: float = 0.0

    def sample(self, started: Function) -> None:
        """Take one sample."""
        self.shared_once = max(self.shared_once, started.megabytes())
        self.resident = max(self.resident, started.resident_megabytes())


@dataclass(slots=True)
class Bench:
    """The figures, and what all runs share."""

    emulator: str
    group: Group | None
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def start(self) -> Iterator[tuple[Function, Control]]:
        """Start the function and its Svix."""
        settings = {
            "FIRESTORE_EMULATOR_HOST": self.emulator,
            "GOOGLE_CLOUD_PROJECT": f"memory-{uuid.uuid4().hex[:8]}",
            **SETTINGS,
        }
        with (
            simulator("--latency-ms", "20") as svix_url,
            function(RELAY, svix_url, settings, group=self.group) as started,
            contextlib.closing(Control(svix_url)) as svix,
        ):
            yield started, svix


@contextlib.asynccontextmanager
async def sampled(started: Function) -> AsyncIterator[Peak]:
    """Sample the memory until the end of the block. Yields the peak."""
    peak = Peak()

    async def look() -> None:
        while True:
            await asyncio.to_thread(peak.sample, started)
            await asyncio.sleep(0.1)

    looking = asyncio.create_task(look())
    try:
        yield peak
    finally:
        looking.cancel()


def large(number: int, run: str) -> bytes:
    """A wrapped push of an event that is just under Svix's limit of 1 MiB."""
    event = {
        "id": f"evt_{run}{number}",
        "type": "user.created",
        "project": f"project_{number % 20}",
        "data": {"id": "sim_1", "more": "x" * (MIB - 1000)},
    }
    data = base64.b64encode(json.dumps(event).encode()).decode()
    return json.dumps({"message": {"data": data, "messageId": f"{run}{number}"}}).encode()


async def small_events(client: Client, started: Function, run: str, seconds: float) -> load.Load:
    """Post events of the usual size at a steady rate."""
    bodies = load.events(run, int(SMALL_RATE * seconds))
    return await load.steady(client, started.notifications, bodies, SMALL_RATE)


async def many_large(bench: Bench, client: Client) -> None:
    """Post 300 bodies of 1 MiB at once while Svix refuses, and small events beside them."""
    with bench.start() as (started, svix):
        await load.closed(client, started.notifications, load.events("warm_", 200), 16)
        idle = started.megabytes()
        worker = [process.pid for process in started.processes()]
        alone = await small_events(client, started, "alone_", 10)
        bodies = [large(number, "large_") for number in range(BODIES)]
        await asyncio.to_thread(svix.refuse, REFUSED_SECONDS)
        async with sampled(started) as peak:
            posted, small = await asyncio.gather(
                load.closed(client, started.notifications, bodies, BODIES),
                small_events(client, started, "beside_", REFUSED_SECONDS),
            )
        del bodies
        messages = Counter(m["event_id"] for m in await asyncio.to_thread(svix.messages))
        await asyncio.to_thread(svix.reset)
        async with sampled(started) as unrefused_peak:
            unrefused, beside = await asyncio.gather(
                load.closed(
                    client,
                    started.notifications,
                    [large(number, "again_") for number in range(BODIES)],
                    BODIES,
                ),
                small_events(client, started, "beside_again_", 10),
            )
        same = worker == [process.pid for process in started.processes()]
    once = sum(messages[f"evt_large_{number}"] == 1 for number in range(BODIES))
    restarts = 0.0 if same else 1.0
    bench.figures += [
        Figure(
            "300 events of 1 MiB, Svix down for 15 s: not delivered exactly once",
            "",
            0,
            [float(BODIES - once)],
        ),
        Figure("  answers other than 200", "", 0, [float(BODIES - posted.statuses[200])]),
        Figure("  worker restarted", "", 0, [restarts]),
        Figure("  peak memory (PSS)", "MB", LIMIT_MB, [peak.shared_once]),
        Figure(
            "300 events of 1 MiB, Svix up: peak memory (PSS)",
            "MB",
            LIMIT_MB,
            [unrefused_peak.shared_once],
        ),
        Figure(
            "  p99 of small events meanwhile, compared with alone",
            "ms",
            3,
            [1000 * beside.latency(0.99)],
            [1000 * alone.latency(0.99)],
        ),
    ]
    bench.notes.append(
        f"idle: {idle:.0f} MB (PSS); peak RSS: {peak.resident:.0f} MB when Svix was down at first,"
        f" {unrefused_peak.resident:.0f} MB when it was up"
    )
    bench.notes.append(
        f"the 300 large events took {posted.seconds:.1f} s when Svix was down at first,"
        f" {unrefused.seconds:.1f} s when it was up; statuses of the small events meanwhile:"
        f" {dict(small.statuses)} and {dict(beside.statuses)}"
    )
    bench.notes.append(
        f"small events alone: median {1000 * alone.latency(0.5):.0f} ms, p99"
        f" {1000 * alone.latency(0.99):.0f} ms; beside the 300, Svix up: median"
        f" {1000 * beside.latency(0.5):.0f} ms, p99 {1000 * beside.latency(0.99):.0f} ms"
    )


async def many_slow(bench: Bench, client: Client) -> None:
    """Open 1,000 connections that send a byte a second, beside healthy traffic."""
    with bench.start() as (started, _):
        await load.closed(client, started.notifications, load.events("warm_", 200), 16)
        alone = await small_events(client, started, "alone_", 10)
        dripping = asyncio.Event()
        opened: Counter[str] = Counter()
        slow = [
            asyncio.create_task(_drip(started.url, length, dripping, opened))
            for length in (2000, 1_000_000)
            for _ in range(SLOW // 2)
        ]
        await dripping.wait()
        async with sampled(started) as peak:
            healthy = await small_events(client, started, "beside_", 15)
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
    bench.figures += [
        Figure(
            "1,000 connections that send a byte a second: p99 of small events",
            "ms",
            1000,
            [1000 * healthy.latency(0.99)],
        ),
        Figure("  peak memory (PSS)", "MB", LIMIT_MB, [peak.shared_once]),
    ]
    bench.notes.append(
        f"beside {opened['opened']} slow connections: statuses of the small events"
        f" {dict(healthy.statuses)}, median {1000 * healthy.latency(0.5):.0f} ms, peak RSS"
        f" {peak.resident:.0f} MB; without them: p99 {1000 * alone.latency(0.99):.0f} ms"
    )


async def _drip(url: str, length: int, dripping: asyncio.Event, opened: Counter[str]) -> None:
    """Send a byte a second on one connection, and open another when it is cut off."""
    at = urlsplit(url)
    while True:
        reader, writer = await asyncio.open_connection(at.hostname, at.port)
        opened["opened"] += 1
        if opened["opened"] >= SLOW:
            dripping.set()
        head = f"POST /notifications HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
        writer.write(head.encode())
        answered = asyncio.create_task(reader.read(1))
        try:
            while not answered.done():
                writer.write(b" ")
                await asyncio.wait([answered], timeout=1)
        finally:
            answered.cancel()
            writer.close()


async def measure(emulator: str, group: Group | None) -> Bench:
    """Measure everything."""
    bench = Bench(emulator, group)
    async with load.client() as client:
        await many_large(bench, client)
        await many_slow(bench, client)
    if group is None:
        bench.notes.append("no control group: the limit of 512 MiB was not enforced")
    else:
        peak = group.peak_megabytes()
        bench.notes.append(
            f"the control group's peak was {peak:.0f} MB, page cache included; its limit was"
            f" {CONTAINER_MIB} MiB"
        )
    return bench


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="accepted, but changes nothing")
    parser.parse_args(argv)
    if lacking := emulators.missing():
        print(lacking, file=sys.stderr)
        return 1
    print("About two minutes:")
    with (
        emulators.firestore_emulator() as (address, _),
        limited(CONTAINER_MIB) as group,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        bench = runner.run(measure(address, group))
    show(bench.figures)
    print("\n" + "\n".join(bench.notes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
