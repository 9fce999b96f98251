"""What an event costs: the relay beside the function most people would write.

`python -m bench.cost` starts both as real processes, on the Firestore emulator and a Svix simulator
that takes 20 ms, gives both the same events in turn, and prints each figure as a ratio to naive's:
the median of the repetitions' own ratios, and their least and greatest. Processor time is that of
the function's whole process group. The table goes to bench/results/cost.json too.
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
from pathlib import Path
from statistics import median

import aiohttp
import httpx
import psutil
import uvloop

from bench import load
from bench.calls import counting
from bench.functions import NAIVE, RELAY, RESULTS, ROOT, Function, function, push, simulator
from bench.table import Figure, show
from local import emulators
from local.control import Control

IN_FLIGHT, MANY = 32, 500
SVIX_MS, SLOW_MS = 20, 300
WARM_UP = 2000  # by then the pacer, which begins at 50 calls a second, holds nothing back
MEMORY_RUNS = 3
FLOOR = ROOT / "bench" / "floor.py"
FLOORS = {
    "framework alone": "",
    "and svix": "svix",
    "and Firestore": "svix,google.cloud.firestore",
}


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything."""

    repetitions: int
    events: int
    starts: int
    many: int
    """Events with 500 in flight."""
    warm_up: int
    """Before the first figure: the emulator's Java goes on compiling for so long."""


FULL = Scale(repetitions=7, events=400, starts=5, many=6000, warm_up=6000)
QUICK = Scale(repetitions=3, events=150, starts=2, many=2000, warm_up=2000)


@dataclass(slots=True)
class Cost:
    """What one batch came to."""

    ms: float
    """Of processor time, for an event."""
    rate: float
    generator_ms: float


@dataclass(slots=True)
class Costs:
    """Batches of one function."""

    first: list[Cost] = field(default_factory=list)
    duplicate: list[Cost] = field(default_factory=list)


@dataclass(slots=True)
class Bench:
    """What stays the same for all runs."""

    scale: Scale
    emulator: str
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _started: float = field(default_factory=time.monotonic)

    def say(self, words: str) -> None:
        """Show how far it is."""
        print(f"  {time.monotonic() - self._started:4.0f} s  {words}", flush=True)

    @contextlib.contextmanager
    def start(self, source: Path, svix_url: str, **more: str) -> Iterator[Function]:
        """A function with a ledger of its own."""
        with function(source, svix_url, {**self.settings(), **more}) as started:
            yield started

    def settings(self) -> Mapping[str, str]:
        """Where its ledger is, which nobody else uses."""
        return {
            "FIRESTORE_EMULATOR_HOST": self.emulator,
            "GOOGLE_CLOUD_PROJECT": f"cost-{uuid.uuid4().hex[:8]}",
        }


async def batch(
    session: aiohttp.ClientSession,
    started: Function,
    bodies: Sequence[bytes],
    expected: int = 200,
) -> Cost:
    """Post them all, 32 at a time, and see what that took."""
    before = started.processor_seconds()
    done = await load.closed(session, started.notifications, bodies, IN_FLIGHT)
    used = started.processor_seconds() - before
    if set(done.statuses) != {expected}:
        said = started.server.output()[-2000:]
        raise RuntimeError(f"all were to be answered {expected}: {dict(done.statuses)}\n{said}")
    return Cost(1000 * used / len(bodies), done.rate, 1000 * done.generator_seconds / len(bodies))


async def warm_up(session: aiohttp.ClientSession, started: Function, count: int) -> None:
    """What is done once, and the pacer's way to the rate that nobody limits."""
    bodies = load.events(f"warm{uuid.uuid4().hex[:8]}_", count)
    await load.closed(session, started.notifications, bodies, IN_FLIGHT)


async def per_event(bench: Bench, session: aiohttp.ClientSession) -> float:
    """Processor time and throughput, first deliveries and duplicates; the relay's rate."""
    scale, relays, naives = bench.scale, Costs(), Costs()
    with (
        # One each: they are given the same events, and Svix takes an event once.
        simulator("--latency-ms", str(SVIX_MS)) as relays_svix,
        simulator("--latency-ms", str(SVIX_MS)) as naives_svix,
        bench.start(RELAY, relays_svix) as relay,
        bench.start(NAIVE, naives_svix) as naive,
    ):
        bench.say("warm-up")
        await warm_up(session, relay, scale.warm_up)
        await warm_up(session, naive, scale.events)
        for number in range(scale.repetitions):
            bodies = load.events(f"first{number}_", scale.events)
            for started, costs in ((relay, relays), (naive, naives)):
                costs.first.append(await batch(session, started, bodies))
                costs.duplicate.append(await batch(session, started, bodies))
            bench.say(
                f"per event {number + 1}/{scale.repetitions}:"
                f" relay {relays.first[-1].ms:.2f} ms, naive {naives.first[-1].ms:.2f} ms"
            )
    ours, theirs = ([cost.ms for cost in costs.first] for costs in (relays, naives))
    bench.figures += [
        Figure("processor time of an event", "ms", 0.30, ours, theirs),
        Figure(
            "events a second",
            "1/s",
            3.0,
            [cost.rate for cost in relays.first],
            [cost.rate for cost in naives.first],
            at_least=True,
        ),
        Figure(
            "a duplicate, against relay's first delivery",
            "ms",
            0.6,
            [cost.ms for cost in relays.duplicate],
            ours,
        ),
    ]
    generator = median(cost.generator_ms for cost in relays.first)
    rate = median(cost.rate for cost in relays.first)
    bench.notes.append(
        f"the load generator's own processor time: {generator:.2f} ms an event with the relay "
        f"({generator * rate / 10:.0f} % of one processor);"
        f" naive's duplicate: {median(cost.ms for cost in naives.duplicate):.2f} ms"
    )
    return rate


async def refusals(bench: Bench, session: aiohttp.ClientSession) -> None:
    """Svix refuses everything for a minute: what is refused at once, against naive's delivery."""
    ours, theirs = [], []
    refusing = ("--burst", "0", "--rate", "0.001", "--retry-after", "60")
    with (
        simulator(*refusing) as refusing_url,
        simulator("--latency-ms", str(SVIX_MS)) as svix_url,
        # The least there is: no request of the next half minute can wait for Svix's minute.
        bench.start(RELAY, refusing_url, REQUEST_BUDGET_SECONDS="25") as relay,
        bench.start(NAIVE, svix_url) as naive,
    ):
        await warm_up(session, naive, bench.scale.events)
        # The first is what tells the pacer; the minute begins here.
        await warm_up(session, relay, IN_FLIGHT)
        for number in range(bench.scale.repetitions):
            # Many of what is cheap, for a clock that ticks a hundred times a second.
            bodies = load.events(f"refused{number}_", 5 * bench.scale.events)
            ours.append((await batch(session, relay, bodies, expected=429)).ms)
            theirs.append((await batch(session, naive, bodies[: bench.scale.events // 2])).ms)
        bench.say(f"refused requests: relay {median(ours):.2f} ms")
    bench.figures.append(
        Figure("a refused request, against naive's delivery", "ms", 0.1, ours, theirs)
    )


async def many_in_flight(bench: Bench, session: aiohttp.ClientSession, rate: float) -> None:
    """500 at a time with Svix at 300 ms, as fast as it goes; then at a rate the machine sustains.

    At the processors' limit, answers take as long as 500 events do: latency is measured below it.
    """
    with (
        simulator("--latency-ms", str(SVIX_MS)) as svix_url,
        bench.start(RELAY, svix_url) as relay,
    ):
        await warm_up(session, relay, WARM_UP)
        await asyncio.to_thread(slow_down, svix_url)
        before = relay.megabytes()
        bodies = load.events("many_", bench.scale.many)
        sampling = asyncio.create_task(_largest(relay))
        full = await load.closed(session, relay.notifications, bodies, MANY)
        sampling.cancel()
        grown = max(relay.megabytes(), await sampling) - before
        first, last = halves(full.finished)
        bench.say(f"{MANY} in flight: {full.rate:.0f}/s")
        sustained = 0.6 * full.rate
        bodies = load.events("steady_", bench.scale.many // 2)
        steady = await load.steady(session, relay.notifications, bodies, sustained)
        bench.say(f"{sustained:.0f}/s, at most {steady.most_in_flight} in flight")
    if set(full.statuses + steady.statuses) != {200}:
        raise RuntimeError(f"not all were delivered: {full.statuses + steady.statuses}")
    bench.figures += [
        Figure(
            "500 in flight: events/s, against 32", "1/s", 0.8, [full.rate], [rate], at_least=True
        ),
        Figure("  last half's, against first half's", "1/s", 0.8, [last], [first], at_least=True),
        Figure("  memory grows by", "MB", 60, [grown]),
        Figure(
            f"  at {sustained:.0f}/s: 99 % within, against Svix's",
            "ms",
            3,
            [1000 * steady.latency(0.99)],
            [SLOW_MS],
        ),
    ]
    bench.notes.append(
        f"at {sustained:.0f}/s at most {steady.most_in_flight} were in flight;"
        f" with {MANY} always in flight 99 % took {1000 * full.latency(0.99):.0f} ms or less,"
        f" of which the processors are {1000 * MANY / full.rate:.0f} ms"
    )


def slow_down(svix_url: str) -> None:
    """Let the simulator take 300 ms."""
    with contextlib.closing(Control(svix_url)) as control:
        control.conduct(latency=SLOW_MS / 1000)


async def _largest(relay: Function) -> float:
    """The most memory, until cancelled."""
    largest = 0.0
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            largest = max(largest, relay.megabytes())
            await asyncio.sleep(0.5)
    return largest


def halves(finished: Sequence[float]) -> tuple[float, float]:
    """Events a second, of the first and the last half of them, the fill and the rest left out."""
    edge = MANY
    inner = sorted(finished)[edge:-edge]
    middle = len(inner) // 2
    first = middle / (inner[middle] - inner[0])
    return first, (len(inner) - 1 - middle) / (inner[-1] - inner[middle])


async def firestore_calls(bench: Bench, session: aiohttp.ClientSession) -> None:
    """Counted on the wire."""
    counted: dict[Path, list[dict[str, int]]] = {RELAY: [], NAIVE: []}
    for source, calls_of in counted.items():
        with simulator() as svix_url:
            async with counting(bench.emulator) as calls:
                settings = {"FIRESTORE_EMULATOR_HOST": calls.address}
                with bench.start(source, svix_url, **settings) as started:
                    for number in (1, 2, 2):
                        async with session.post(started.notifications, json=push(number)):
                            calls_of.append(calls.take())
    for name, number, target in (("a first delivery", 1, 2), ("a duplicate", 2, 2)):
        ours, theirs = (counted[source][number] for source in (RELAY, NAIVE))
        bench.notes.append(f"Firestore calls of {name}: relay {ours}, naive {theirs}")
        figure = Figure(f"Firestore calls of {name}", "calls", target, [sum(ours.values())])
        bench.figures.append(figure)
    reads = counted[RELAY][1].get("BatchGetDocuments", 0)
    bench.figures.append(Figure("  document reads of a first delivery", "calls", 0, [reads]))
    bench.say("Firestore calls")


async def cold_starts(bench: Bench, session: aiohttp.ClientSession) -> None:
    """Process start to first answer, and memory after 1,000 events; the floors of the former."""
    seconds: dict[str, list[float]] = {"relay": [], "naive": [], **{name: [] for name in FLOORS}}
    memory: dict[str, list[float]] = {"relay": [], "naive": []}
    with simulator("--latency-ms", str(SVIX_MS)) as svix_url:
        for number in range(-1, bench.scale.starts):
            for name, took in seconds.items():
                source = {"relay": RELAY, "naive": NAIVE}.get(name, FLOOR)
                settings = {**bench.settings(), "FLOOR": FLOORS.get(name, "")}
                began = time.perf_counter()
                with function(source, svix_url, settings, ready=_delivers) as started:
                    if number < 0:
                        continue  # the files are in the page cache now, and compiled
                    took.append(time.perf_counter() - began)
                    if name in memory and number < MEMORY_RUNS:
                        bodies = load.events(f"{name}{number}_", 1000)
                        await load.closed(session, started.notifications, bodies, IN_FLIGHT)
                        memory[name].append(started.megabytes())
            if number >= 0:
                bench.say(f"cold starts {number + 1}/{bench.scale.starts}")
    bench.figures += [
        Figure("process start to first delivery", "s", 1.2, seconds["relay"], seconds["naive"]),
        Figure("memory after 1,000 events", "MB", 1.1, memory["relay"], memory["naive"]),
    ]
    floors = ", ".join(f"{name} {median(seconds[name]):.2f} s" for name in FLOORS)
    bench.notes.append(f"the floors of a cold start: {floors}")


def _delivers(url: str) -> bool:
    """Whether it delivers by now."""
    try:
        return httpx.post(
            f"{url}/notifications", json=push(0, f"cold{uuid.uuid4().hex[:8]}_"), timeout=30
        ).is_success
    except httpx.TransportError:
        return False


async def measure(scale: Scale) -> Bench:
    """All of it."""
    with emulators.firestore_emulator() as (address, _):
        bench = Bench(scale, address)
        async with load.client() as session:
            rate = await per_event(bench, session)
            await refusals(bench, session)
            await many_in_flight(bench, session, rate)
            await firestore_calls(bench, session)
            await cold_starts(bench, session)
        return bench


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.cost", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer events and repetitions")
    arguments = parser.parse_args(argv)
    if lacking := emulators.missing():
        print(lacking, file=sys.stderr)
        return 1
    print("About two minutes:" if arguments.quick else "About four minutes:")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        bench = runner.run(measure(QUICK if arguments.quick else FULL))
    show(bench.figures)
    machine = (
        f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}"
    )
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
