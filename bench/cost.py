"""What an event costs: the relay, the function most people would write, and an empty function.

`python -m bench.cost` starts all three as real processes, on the Firestore emulator and a Svix
simulator that takes 20 ms. It sends them the same events in turn, and prints each figure as a
ratio: to that of the obvious function, or to that of the bare framework, which only answers 200. A
figure is the median of the repetitions' ratios, with the smallest and the largest. Processor time
is that of the function's whole process group. The table is also written to bench/results/cost.json.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from statistics import median

import psutil
import uvloop
from pyreqwest.client import Client
from pyreqwest.exceptions import PyreqwestError

from bench import load
from bench.calls import counting
from bench.functions import NAIVE, RELAY, RESULTS, ROOT, Function, function, push, simulator
from bench.table import Figure, show
from local import emulators
from relay.envelope import read
from relay.sender import SvixSender

IN_FLIGHT, MANY = 32, 200
SVIX_MS = 20
COLD_EVENTS = 1000
MEMORY_RUNS = 3
LOAD = 0.6
"""The latency is measured at this share of the relay's throughput."""
BARE = ROOT / "bench" / "floor.py"
FLOORS = {
    "the framework": "",
    "the framework and svix": "svix",
    "the framework, svix and Firestore": "svix,google.cloud.firestore",
}


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured."""

    repetitions: int
    events: int
    starts: int
    warm_up: int
    """Events before the first figure. The emulator's Java compiles its code meanwhile, and the
    pacer's window grows, so that it holds nothing back."""


FULL = Scale(repetitions=7, events=600, starts=7, warm_up=6000)
QUICK = Scale(repetitions=3, events=200, starts=2, warm_up=1500)


@dataclass(slots=True)
class Bench:
    """What all runs share."""

    scale: Scale
    emulator: str
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _started: float = field(default_factory=time.monotonic)

    def say(self, words: str) -> None:
        """Print the progress."""
        print(f"  {time.monotonic() - self._started:4.0f} s  {words}", flush=True)

    @contextlib.contextmanager
    def start(self, source: Path, svix_url: str, **more: str) -> Iterator[Function]:
        """Start a function with a ledger of its own."""
        with function(source, svix_url, {**self.settings(), **more}) as started:
            yield started

    def settings(self) -> Mapping[str, str]:
        """The settings of a ledger that no other function uses."""
        return {
            "FIRESTORE_EMULATOR_HOST": self.emulator,
            "GOOGLE_CLOUD_PROJECT": f"cost-{uuid.uuid4().hex[:8]}",
        }


@dataclass(slots=True)
class Costs:
    """In each repetition: milliseconds of processor time per event, and events a second."""

    few: list[float] = field(default_factory=list)
    many: list[float] = field(default_factory=list)
    duplicate: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)


async def batch(
    client: Client, started: Function, bodies: Sequence[bytes], in_flight: int
) -> tuple[float, load.Load]:
    """Post all bodies. Returns the milliseconds of processor time for each, and the load."""
    before = started.processor_seconds()
    done = await load.closed(client, started.notifications, bodies, in_flight)
    used = started.processor_seconds() - before
    if set(done.statuses) != {200}:
        said = started.server.output()[-2000:]
        raise RuntimeError(f"all should be answered 200: {dict(done.statuses)}\n{said}")
    return 1000 * used / len(bodies), done


async def per_event(bench: Bench, client: Client) -> None:
    """Processor time and throughput of first deliveries and duplicates, at 32 and 200 in flight."""
    scale = bench.scale
    relays, naives, bares = Costs(), Costs(), Costs()
    generator: list[float] = []
    with (
        # One simulator each, because both functions get the same events, and Svix takes each once.
        simulator("--latency-ms", str(SVIX_MS)) as relays_svix,
        simulator("--latency-ms", str(SVIX_MS)) as naives_svix,
        bench.start(RELAY, relays_svix) as relay,
        bench.start(NAIVE, naives_svix) as naive,
        bench.start(BARE, relays_svix, FLOOR="") as bare,
    ):
        bench.say("warm-up")
        for started, count in ((relay, scale.warm_up), (naive, scale.events), (bare, scale.events)):
            bodies = load.events(f"warm{uuid.uuid4().hex[:8]}_", count)
            await load.closed(client, started.notifications, bodies, MANY)
        for number in range(scale.repetitions):
            few = load.events(f"few{number}_", scale.events)
            many = load.events(f"many{number}_", 2 * scale.events)
            for started, costs in ((relay, relays), (naive, naives), (bare, bares)):
                ms, done = await batch(client, started, few, IN_FLIGHT)
                costs.few.append(ms)
                costs.rates.append(done.rate)
                costs.duplicate.append((await batch(client, started, few, IN_FLIGHT))[0])
                ms, done = await batch(client, started, many, MANY)
                costs.many.append(ms)
                if started is relay:
                    generator.append(1000 * done.generator_seconds / len(many))
            bench.say(
                f"per event {number + 1}/{scale.repetitions}: relay {relays.few[-1]:.2f} ms,"
                f" {relays.many[-1]:.2f} at {MANY}; obvious function {naives.few[-1]:.2f},"
                f" {naives.many[-1]:.2f}; bare {bares.few[-1]:.2f}, {bares.many[-1]:.2f}"
            )
        latencies = [
            await paced(client, relay, f"paced{n}_", LOAD * median(relays.rates), scale.events)
            for n in range(min(3, scale.repetitions))
        ]
        bench.say(f"p99 {median(latencies):.0f} ms at {LOAD:.0%} of the relay's rate")
        client_ms = [await client_part(relays_svix, f"part{n}_", scale.events) for n in range(3)]
    bench.figures += [
        Figure(
            f"processor time of an event, {IN_FLIGHT} in flight", "ms", 0.25, relays.few, naives.few
        ),
        Figure(
            f"processor time of an event, {MANY} in flight", "ms", 0.15, relays.many, naives.many
        ),
        Figure(
            f"  compared with the bare framework, {MANY} in flight",
            "ms",
            3,
            relays.many,
            bares.many,
        ),
        Figure(
            f"  compared with the bare framework, {IN_FLIGHT} in flight",
            "ms",
            6,
            relays.few,
            bares.few,
        ),
        Figure(
            f"processor time of a duplicate, {IN_FLIGHT} in flight",
            "ms",
            0.2,
            relays.duplicate,
            naives.duplicate,
        ),
        Figure(
            f"events a second, {IN_FLIGHT} in flight",
            "1/s",
            3,
            relays.rates,
            naives.rates,
            at_least=True,
        ),
        Figure(f"p99 latency at {LOAD:.0%} of that rate", "ms", 2 * SVIX_MS, latencies),
    ]
    bench.notes.append(
        "processor time of the call to Svix (SDK, HTTP, classifying the answer):"
        f" {median(client_ms):.2f} of {median(relays.few):.2f} ms per event"
    )
    bench.notes.append(
        f"processor time of the load generator: {median(generator):.2f} ms per event"
    )


async def paced(client: Client, relay: Function, run: str, rate: float, count: int) -> float:
    """The milliseconds within which 99 % are answered, at `rate` events a second."""
    done = await load.steady(client, relay.notifications, load.events(run, count), rate)
    return 1000 * done.latency(0.99)


async def client_part(svix_url: str, run: str, count: int) -> float:
    """The milliseconds of processor time of one event's call to Svix, made in this process."""
    sender = SvixSender("testsk_bench", svix_url, create_applications=True)
    events = [read(body, {}, ["data.id"]) for body in load.events(run, count)]
    left = iter(events)

    async def send_on() -> None:
        for event in left:
            await sender.send(event, event.payload_sha256)

    await asyncio.gather(*(sender.find(event) for event in events[:IN_FLIGHT]))
    before = time.process_time()
    await asyncio.gather(*(send_on() for _ in range(IN_FLIGHT)))
    used = time.process_time() - before
    await sender.close()
    return 1000 * used / count


async def cold_and_warm(bench: Bench, client: Client) -> None:
    """The throughput of a new function and of a warm one, at 200 in flight and without a limit.

    Java and the page cache are warm in both cases.
    """
    cold: list[float] = []
    warm: list[float] = []
    for number in range(min(3, bench.scale.repetitions)):
        with (
            simulator("--latency-ms", str(SVIX_MS)) as svix_url,
            bench.start(RELAY, svix_url) as relay,
        ):
            await batch(client, relay, load.events(f"built{number}_", 1), 1)  # makes its clients
            for run, rates in (("cold", cold), ("warm", warm)):
                bodies = load.events(f"{run}{number}_", COLD_EVENTS)
                rates.append((await batch(client, relay, bodies, MANY))[1].rate)
    bench.say(f"cold {median(cold):.0f}/s, warm {median(warm):.0f}/s")
    bench.figures.append(
        Figure(
            f"{COLD_EVENTS:,} events, {MANY} in flight: cold compared with warm",
            "1/s",
            0.9,
            cold,
            warm,
            at_least=True,
        )
    )


async def firestore_calls(bench: Bench, client: Client) -> None:
    """Count the calls to Firestore: for a single event, and for many in flight, in batches."""
    counted: dict[Path, list[dict[str, int]]] = {RELAY: [], NAIVE: []}
    for source, calls_of in counted.items():
        with simulator("--latency-ms", str(SVIX_MS)) as svix_url:
            async with counting(bench.emulator) as calls:
                settings = {"FIRESTORE_EMULATOR_HOST": calls.address}
                with bench.start(source, svix_url, **settings) as started:
                    for number in (1, 2, 2):
                        body = json.dumps(push(number)).encode()
                        await load.post(client, started.notifications, body)
                        calls_of.append(calls.take())
                    for in_flight in (IN_FLIGHT, MANY):
                        bodies = load.events(f"together{in_flight}_", bench.scale.events)
                        await load.closed(client, started.notifications, bodies, in_flight)
                        calls_of.append(calls.take())
    for name, number, target in (("a first delivery", 1, 2), ("a duplicate", 2, 2)):
        ours, theirs = (counted[source][number] for source in (RELAY, NAIVE))
        bench.notes.append(f"Firestore calls of {name}: relay {ours}, obvious function {theirs}")
        figure = Figure(f"Firestore calls of {name}", "calls", target, [sum(ours.values())])
        bench.figures.append(figure)
    together, alone = (sum(counted[source][3].values()) for source in (RELAY, NAIVE))
    events = bench.scale.events
    bench.figures.append(
        Figure(
            f"Firestore calls of an event, {IN_FLIGHT} in flight",
            "calls",
            0.5,
            [together / events],
            [alone / events],
        )
    )
    for in_flight, number in ((IN_FLIGHT, 3), (MANY, 4)):
        # A request that waits for a turn first reads the record; these reads are batched as well.
        batches, reads = (
            counted[RELAY][number].get(name, 0) for name in ("BatchWrite", "BatchGetDocuments")
        )
        bench.notes.append(
            f"{in_flight} in flight: {2 * events / batches:.1f} writes in one batch on average,"
            f" {reads} calls for reads"
        )
    bench.say("Firestore calls")


async def cold_starts(bench: Bench, client: Client) -> None:
    """The time from process start to first answer, its floors, and memory after 1,000 events."""
    seconds: dict[str, list[float]] = {"relay": [], "naive": [], **{name: [] for name in FLOORS}}
    memory: dict[str, list[float]] = {"relay": [], "naive": []}
    with simulator("--latency-ms", str(SVIX_MS)) as svix_url:
        for number in range(-1, bench.scale.starts):
            for name, took in seconds.items():
                source = {"relay": RELAY, "naive": NAIVE}.get(name, BARE)
                settings = {**bench.settings(), "FLOOR": FLOORS.get(name, "")}
                began = time.perf_counter()
                with function(source, svix_url, settings) as started:
                    body = json.dumps(push(0, f"cold{uuid.uuid4().hex[:8]}_")).encode()
                    await _first_answer(client, started, body)
                    if number < 0:
                        continue  # this start fills the page cache and compiles the modules
                    took.append(time.perf_counter() - began)
                    if name in memory and number < MEMORY_RUNS:
                        bodies = load.events(f"{name}{number}_", 1000)
                        await load.closed(client, started.notifications, bodies, IN_FLIGHT)
                        memory[name].append(started.megabytes())
            if number >= 0:
                bench.say(f"cold starts {number + 1}/{bench.scale.starts}")
    bench.figures += [
        Figure("process start to first delivery", "s", 1.0, seconds["relay"], seconds["naive"]),
        Figure("memory after 1,000 events", "MB", 1.05, memory["relay"], memory["naive"]),
    ]
    floors = "; ".join(f"{name} {median(seconds[name]):.2f} s" for name in FLOORS)
    bench.notes.append(f"a cold start that only imports: {floors}")


async def _first_answer(client: Client, started: Function, body: bytes) -> None:
    """Wait for the first answer: the master listens before its worker can answer."""
    while True:
        with contextlib.suppress(PyreqwestError):
            answer = await load.post(client, started.notifications, body)
            if answer.status == HTTPStatus.OK:
                return
        await asyncio.sleep(0.01)


def processor() -> str:
    """The processor's name, if the system knows it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


async def measure(scale: Scale) -> Bench:
    """Measure everything."""
    with emulators.firestore_emulator() as (address, _):
        bench = Bench(scale, address)
        async with load.client() as client:
            await per_event(bench, client)
            await cold_and_warm(bench, client)
            await firestore_calls(bench, client)
            await cold_starts(bench, client)
        return bench


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.cost", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer events and repetitions")
    arguments = parser.parse_args(argv)
    if lacking := emulators.missing():
        print(lacking, file=sys.stderr)
        return 1
    print("About two minutes:" if arguments.quick else "About five minutes:")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        bench = runner.run(measure(QUICK if arguments.quick else FULL))
    show(bench.figures)
    machine = f"{processor()}, {os.cpu_count()} processors, Python {platform.python_version()}"
    machine += f", {psutil.virtual_memory().total / 2**30:.0f} GB"
    print("\n" + "\n".join([*bench.notes, machine]))
    RESULTS.mkdir(exist_ok=True)
    results = {
        "machine": machine,
        "figures": [figure.to_json() for figure in bench.figures],
        "notes": bench.notes,
    }
    (RESULTS / "cost.json").write_text(json.dumps(results, indent=1))
    print(f"\nWritten: {RESULTS / 'cost.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
