"""How one customer's events delay another's: poison, floods, hanging calls, outages.

`python -m bench.neighbours` runs the relay's own delivery and pacer (`bench/model.py`) and the
obvious function in virtual time, and then the main rows over HTTP (`bench/beside.py`). It prints
the tables of docs/measurements.md and writes them to bench/results/.

"From push" is the time from the push's arrival at the function to its acknowledgement. It is
measured in a run in which the other projects have a subscription of their own. "From publishing"
also includes the time in Pub/Sub. It is measured in a run in which all projects share one
subscription.
"""

import argparse
import asyncio
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace

from bench import beside, model
from bench.functions import RESULTS
from bench.table import markdown
from local.push import Arrival, Policy, Subscription
from relay.envelope import Event
from tests import virtual_time

BUSY = Policy(min_window=3000, initial_window=3000)
"""A subscription that was busy before, and keeps its window."""
NEW = Policy(min_window=3000)
"""A new subscription: at one event a second, its window is 13 when the poison comes."""
BURST = 50.0
POISON, FLOOD = 1_000_000, 2_000_000
"""Messages with numbers from POISON on are poison, and from FLOOD on they are the flood. Lower
numbers belong to the other projects."""
OUTAGE_BEGINS, OUTAGE_ENDS = 10.0, 55.0
"""Seconds."""
OTHERS = 20
"""The number of other projects, unless a row says otherwise."""

Wrong = Callable[[Event, float], str | None]


@dataclass(frozen=True, slots=True)
class World:
    """What happens in one run. Times are in seconds."""

    arrivals: tuple[Arrival, ...]
    goes_wrong: str = "nothing"
    """A key of `WRONGS`."""
    rate: float = 50.0
    """Calls a second that Svix allows."""
    projects: int = OTHERS
    instances: int = 4
    policy: Policy = BUSY
    beside: bool = False
    """Whether to make two runs: one in which the other projects have a subscription of their own,
    and one in which all projects share one."""
    counts_from: float = 0.0
    """The use of the limit counts from this time on."""
    ends_at: float | None = None
    """When the run ends; None: when everything is acknowledged."""

    def project_of(self, message: int) -> str:
        """The project of a message."""
        if message >= FLOOD:
            return "flood"
        return "poison" if message >= POISON else f"project-{message % self.projects}"


@dataclass(slots=True)
class Run:
    """The figures of one run."""

    published: dict[int, float]
    pushed: dict[int, list[float]] = field(default_factory=dict)
    """When each message was pushed, each time."""
    acked: dict[int, float] = field(default_factory=dict)
    nacked: list[tuple[float, int]] = field(default_factory=list)
    taken: int = 0
    """Messages in Svix."""
    failed: int = 0
    """Calls that went wrong."""
    refused: float = 0.0
    """The share of the calls that Svix refused."""
    used: float = 0.0
    """The share of the limit that was used."""

    def others(self) -> list[int]:
        """The messages that are neither poison nor flood."""
        return [message for message in self.published if message < POISON]

    def from_push(self, messages: Iterable[int]) -> list[float]:
        """The seconds of each message from its last push to its acknowledgement."""
        return [self.acked[m] - self.pushed[m][-1] for m in messages if m in self.acked]

    def from_publishing(self) -> list[float]:
        """The seconds of the others from publishing to acknowledgement, or to the run's end."""
        ends = max(self.acked.values())
        return [self.acked.get(m, ends) - self.published[m] for m in self.others()]

    def nacks(self, messages: Iterable[int]) -> int:
        """The number of nacks of these messages."""
        wanted = set(messages)
        return sum(message in wanted for _, message in self.nacked)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of the values does not exceed; 0 if there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def _of_poison(wrong: Callable[[Event], str]) -> Wrong:
    return lambda event, _at: wrong(event) if event.project == "poison" else None


def _outage(kind: str) -> Wrong:
    return lambda _event, at: kind if OUTAGE_BEGINS <= at < OUTAGE_ENDS else None


def _at_random(share: float, kind: str, until: float) -> Wrong:
    chance = random.Random(1)  # noqa: S311 - reproducible, not secret
    return lambda _event, at: kind if at < until and chance.random() < share else None


WRONGS: dict[str, Callable[[], Wrong]] = {
    "nothing": lambda: lambda _event, _at: None,
    "poison: 500": lambda: _of_poison(lambda _: "500"),
    "poison: hanging": lambda: _of_poison(lambda _: "hang"),
    "poison: in turn": lambda: _of_poison(lambda event: "500" if int(event.id) % 2 else "hang"),
    "2 in 1,000 hang": lambda: _at_random(0.002, "hang", 1e9),
    "half fail for 5 min": lambda: _at_random(0.5, "500", 300.0),
    "down, 500": lambda: _outage("500"),
    "down, hanging": lambda: _outage("hang"),
}
"""What goes wrong at Svix, by name. Each run makes its own."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Two runs: in `apart` the other projects have a subscription of their own.

    In `shared` all projects share one. Both are the same run if `World.beside` is false.
    """

    apart: Run
    shared: Run


def observe(world: World, *, obvious: bool = False, seed: int = 1) -> Seen:
    """Make all runs of a world, with the relay or with the obvious function."""
    shared = run(world, obvious=obvious, seed=seed, shared=True)
    apart = run(world, obvious=obvious, seed=seed, shared=False) if world.beside else shared
    return Seen(apart, shared)


def run(world: World, *, obvious: bool, seed: int, shared: bool) -> Run:
    """Make one run. With `shared`, everything is in one subscription."""

    async def main() -> Run:
        uniform = random.Random(seed).uniform  # noqa: S311 - reproducible, not secret
        goes_wrong = WRONGS[world.goes_wrong]()
        svix = model.Svix(uniform, lambda _: world.rate, burst=BURST, goes_wrong=goes_wrong)
        function: model.Function = (
            model.Obvious(svix, world.project_of)
            if obvious
            else model.Relay(svix, uniform, instances=world.instances, project_of=world.project_of)
        )
        seen = Run({arrival.message: arrival.at for arrival in world.arrivals})

        async def deliver(message: int) -> bool:
            seen.pushed.setdefault(message, []).append(model.now())
            return await function.deliver(message)

        async def subscribe(arrivals: Iterable[Arrival]) -> None:
            subscription = Subscription(deliver, world.policy)
            await subscription.run(list(arrivals), world.ends_at)
            seen.acked |= subscription.acked
            seen.nacked += subscription.nacked

        apart = [a for a in world.arrivals if a.message < POISON and not shared]
        together = [a for a in world.arrivals if a.message >= POISON or shared]
        await asyncio.gather(subscribe(apart), subscribe(together))
        seen.taken, seen.failed = len(svix.taken), svix.failed
        seen.refused = sum(refused for _, refused in svix.calls) / len(svix.calls)
        seconds = svix.calls[-1][0] - world.counts_from
        taken = sum(not refused for at, refused in svix.calls if at >= world.counts_from)
        seen.used = taken / (BURST + world.rate * seconds)
        return seen

    return virtual_time.run(main())


def poison(kind: str, others: float, projects: int = OTHERS, minutes: float = 15.0) -> World:
    """One project publishes twenty poison events after 10 s. The others come at a steady rate."""
    seconds = 60 * minutes
    bad = [Arrival(10.0, POISON + number) for number in range(20)]
    return World(
        (*model.steady(others, seconds - 30), *bad),
        f"poison: {kind}",
        projects=projects,
        beside=True,
        ends_at=seconds,
    )


def flood(events: int, ends_at: float | None = None) -> World:
    """One project floods after 10 s. Another project publishes 1 event a second."""
    quiet = model.steady(1.0, ends_at or 10 + events / 50)
    bad = [Arrival(10.0, FLOOD + number) for number in range(events)]
    return World((*quiet, *bad), projects=1, beside=True, counts_from=10.0, ends_at=ends_at)


def outage(kind: str, projects: int) -> World:
    """Svix fails for 45 s, while 20 events a second are published."""
    return World(tuple(model.steady(20.0, 85.0)), f"down, {kind}", rate=200.0, projects=projects)


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a run, and its goal."""

    name: str
    of: Callable[[Seen], float]
    goal: float | None = None
    at_least: bool = False
    shown: str = "{:.2f}"

    def is_met(self, value: float) -> bool:
        """Whether the goal is met."""
        if self.goal is None:
            return True
        return value >= self.goal if self.at_least else value <= self.goal


def _over_a_second(seen: Seen) -> float:
    """The percentage of the others that took over a second from publishing."""
    seconds = seen.shared.from_publishing()
    return 100 * sum(each > 1 for each in seconds) / len(seconds)


def _nacks_of_late(seen: Seen) -> float:
    """The nacks of messages that were published in the last 30 s of the outage."""
    run = seen.shared
    return run.nacks(m for m, at in run.published.items() if OUTAGE_ENDS - 30 <= at < OUTAGE_ENDS)


def _back_at_full_rate(seen: Seen) -> float:
    """The acks a second between 10 and 20 s after the outage, while 20 are published."""
    since = OUTAGE_ENDS + 10
    return sum(since <= at < since + 10 for at in seen.shared.acked.values()) / 10


def _missing(seen: Seen) -> float:
    return len(seen.shared.published) - seen.shared.taken


P99_FROM_PUSH = Figure(
    "others' p99 from push, s",
    lambda seen: percentile(seen.apart.from_push(seen.apart.others()), 0.99),
    1.0,
)
P99_FROM_PUBLISHING = Figure(
    "others' p99 from publishing, s", lambda seen: percentile(seen.shared.from_publishing(), 0.99)
)
NACKS = Figure("nacks", lambda seen: len(seen.shared.nacked), 0, shown="{:,.0f}")
MISSING = Figure("missing in Svix", _missing, 0, shown="{:.0f}")

POISON_FIGURES = (
    P99_FROM_PUSH,
    Figure(
        "others' nacks",
        lambda seen: (
            seen.apart.nacks(seen.apart.others()) + seen.shared.nacks(seen.shared.others())
        ),
        0,
        shown="{:.0f}",
    ),
    P99_FROM_PUBLISHING,
    Figure("others' events over 1 s from publishing, %", _over_a_second),
    replace(NACKS, name="all nacks, shared subscription", goal=None),
)
FLOOD_FIGURES = (
    replace(P99_FROM_PUSH, goal=2.0),
    Figure(
        "limit used, %", lambda seen: 100 * seen.apart.used, 97.0, at_least=True, shown="{:.1f}"
    ),
)
TAIL_FIGURES = (
    replace(P99_FROM_PUSH, goal=2.0),
    replace(P99_FROM_PUBLISHING, shown="{:.1f}"),
    Figure(
        "last ack, s after the flood was published",
        lambda seen: max(seen.shared.acked.values()) - 10,
        shown="{:.0f}",
    ),
    NACKS,
)
DRAIN_FIGURES = (
    Figure("seconds", lambda seen: max(seen.shared.acked.values()), shown="{:.1f}"),
    NACKS,
)
FAILURE_FIGURES = (NACKS, replace(P99_FROM_PUBLISHING, name="p99 from publishing, s"), MISSING)
OUTAGE_FIGURES = (
    MISSING,
    Figure(
        "nacks of events published in the outage's last 30 s", _nacks_of_late, 0, shown="{:,.0f}"
    ),
    Figure(
        "acks a second, 10 to 20 s after the outage",
        _back_at_full_rate,
        20.0,
        at_least=True,
        shown="{:.1f}",
    ),
    replace(NACKS, name="all nacks", goal=None),
)

Table = tuple[str, tuple[Figure, ...], dict[str, World]]

TABLES: list[Table] = [
    (
        "20 poison events of one project, in a run of 15 minutes",
        POISON_FIGURES,
        {
            f"{kind}; the others {load}": poison(kind, rate, projects)
            for kind in ("500", "hanging", "in turn")
            for load, rate, projects in (
                ("at 10/s", 10.0, OTHERS),
                ("at 1/s", 1.0, OTHERS),
                ("are one project, at 1/s", 1.0, 1),
            )
        }
        | {"500; the others at 1/s, new subscription": replace(poison("500", 1.0), policy=NEW)},
    ),
    (
        "A flood of one project, another project at 1/s; Svix allows 50/s",
        FLOOD_FIGURES,
        {"more than the window holds, all the time": flood(30_000, ends_at=310.0)},
    ),
    (
        "A flood until it has drained, another project at 1/s",
        TAIL_FIGURES,
        {"3,000 (fits the window)": flood(3000), "10,000": flood(10_000)},
    ),
    (
        "A backlog of 20,000 events of 20 projects; Svix allows 50/s",
        DRAIN_FIGURES,
        {
            "nothing goes wrong": World(tuple(model.backlog(20_000))),
            "2 calls in 1,000 hang for 10 s": World(
                tuple(model.backlog(20_000)), "2 in 1,000 hang"
            ),
        },
    ),
    (
        "Half of all calls fail for five minutes; 10 events a second",
        FAILURE_FIGURES,
        {"Svix answers 500": World(tuple(model.steady(10.0, 330.0)), "half fail for 5 min")},
    ),
    (
        "An outage of 45 s: Svix fails every call; 20 events a second",
        OUTAGE_FIGURES,
        {
            f"{kind}, {projects} project{'s' * (projects > 1)}": outage(kind, projects)
            for kind in ("500", "hanging")
            for projects in (1, OTHERS)
        },
    ),
]


def rows(table: Table, ours: Sequence[Seen], theirs: Sequence[Seen]) -> tuple[str, bool]:
    """One table, and whether its goals are met. The obvious function's figures are in brackets."""
    title, figures, worlds = table
    header = [title]
    for figure in figures:
        sign = ">=" if figure.at_least else "<="
        header.append(
            figure.name + (f" ({sign} {figure.goal:g})" if figure.goal is not None else "")
        )
    lines, is_met = [], True
    for name, seen, obvious in zip(worlds, ours, theirs, strict=True):
        cells = [name]
        for figure in figures:
            value, beside = figure.of(seen), figure.of(obvious)
            met = figure.is_met(value)
            is_met &= met
            shown = figure.shown.format(value) + ("" if met else " NO")
            cells.append(f"{shown} [{figure.shown.format(beside)}]")
        lines.append(cells)
    return markdown(header, lines), is_met


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.neighbours", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only the short rows")
    parser.add_argument("--virtual", action="store_true", help="nothing over HTTP")
    arguments = parser.parse_args(argv)
    tables = TABLES[4:] if arguments.quick else TABLES
    print(
        "In virtual time; goals in parentheses, the obvious function's figures in brackets:",
        flush=True,
    )
    shown, is_met = [], True
    with ProcessPoolExecutor(2) as processes:
        running = [
            (
                [processes.submit(observe, world) for world in worlds.values()],
                [
                    processes.submit(observe, _bounded(world), obvious=True)
                    for world in worlds.values()
                ],
            )
            for _, _, worlds in tables
        ]
        for table, (ours, theirs) in zip(tables, running, strict=True):
            text, met = rows(
                table, [each.result() for each in ours], [each.result() for each in theirs]
            )
            shown.append(text)
            is_met &= met
            print(f"\n{text}", flush=True)
    if not (arguments.virtual or arguments.quick):
        over_http = asyncio.run(beside.measure())
        shown.append(markdown(beside.HEADER, [row.cells() for row in over_http]))
        is_met &= all(row.is_met for row in over_http)
        print(f"\n{shown[-1]}", flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "neighbours.md").write_text("\n\n".join(shown) + "\n")
    return 0 if is_met else 1


def _bounded(world: World) -> World:
    """The world with an end after twenty minutes, because the obvious function may never finish."""
    return world if world.ends_at else replace(world, ends_at=1200.0)


if __name__ == "__main__":
    sys.exit(main())
