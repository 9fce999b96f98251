"""What a rate limit does: the relay and the obvious function drain a backlog against Svix's limit.

`python -m bench.drain` first runs in virtual time, with the relay's own delivery and pacer
(`bench/model.py`), and measures how soon instances find new shares (`bench/shares.py`). Then it
runs a tenth of that over HTTP (`bench/pushed.py`). It prints the tables of docs/measurements.md,
writes them to bench/results/ and draws `bench/drain.png`. The push simulator is `local/push.py`. It
says which of its rules are documented by Google and which are the model's own.
"""

import argparse
import asyncio
import json
import math
import random
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from bench import model, pushed, shares
from bench.functions import RESULTS, ROOT
from bench.table import markdown
from local.push import Policy, Subscription
from tests import virtual_time

PLOT = ROOT / "bench" / "drain.png"
RATE, BURST = 50.0, 50.0

HALVING = Policy()
"""A nack halves the window."""
FLOOR = Policy(min_window=3000)
"""A nack does not shrink the window: a subscriber that makes pushes wait keeps 3,000."""
BUSY = Policy(min_window=3000, initial_window=3000)
"""The same, but the subscription was busy before: 3,000 pushes come at once."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One backlog, and its goals. Times are in seconds."""

    name: str
    used: float
    """At least this share of the limit must be used."""
    refused: float
    """At most this share of the calls may be refused; 1: no goal."""
    events: int = 20_000
    instances: int = 1
    policy: Policy = FLOOR
    latency: float = 0.1
    retry_after: float | None = 1.0
    budget: float = model.BUDGET
    rate: float = RATE
    halved_every: float = math.inf
    """The limit is halved and doubled in turn, each time after this time."""
    swap_at: float = math.inf
    """When an instance is killed and another one starts."""
    seeds: int = 3
    seeds_without_nack: float = 1.0
    """At least this share of the seeds must have no nack."""

    def limit(self, at: float) -> float:
        """The calls a second that Svix allows."""
        return self.rate / 2 if at // self.halved_every % 2 == 1 else self.rate


@dataclass(slots=True)
class Run:
    """The figures of one run."""

    used: float
    refused: float
    nacks: int
    seconds: float
    """Until the last event was acknowledged, or the run was given up."""
    missing: int
    """Events that were never acknowledged, or are not in Svix."""
    timeline: list[tuple[int, int, int]] = field(default_factory=list)
    """For each second: the second, calls taken, calls refused."""
    waiting: list[int] = field(default_factory=list)
    """For each second: pushes that waited for a turn."""


SCENARIOS = [
    Scenario("1 instance, a nack halves the window", 0.97, 0.01, policy=HALVING),
    Scenario("1 instance, the window stays at 3,000", 0.97, 0.01),
    Scenario("1 instance, 3,000 pushes come at once", 0.97, 0.01, policy=BUSY),
    Scenario("2 instances, a nack halves the window", 0.95, 0.02, instances=2, policy=HALVING),
    Scenario("2 instances, the window stays at 3,000", 0.95, 0.02, instances=2),
    Scenario("4 instances, a nack halves the window", 0.95, 0.03, instances=4, policy=HALVING),
    Scenario("4 instances, the window stays at 3,000", 0.95, 0.03, instances=4),
    Scenario("4 instances, 3,000 pushes come at once", 0.95, 0.03, instances=4, policy=BUSY),
]
"""Rows with 20,000 events against 50 calls a second, burst 50, 100 ms, and 3,200 places."""

_FOUR = Scenario("", 0.93, 0.03, instances=4)
VARIATIONS = [
    replace(
        _FOUR,
        name="an instance is killed and another one starts after 200 s",
        swap_at=200.0,
        seeds_without_nack=0.0,  # the killed instance's pushes are nacked
    ),
    replace(_FOUR, name="Retry-After is 30 s", retry_after=30.0),
    replace(_FOUR, name="no Retry-After", retry_after=None),
    replace(_FOUR, name="Svix takes 20 ms", latency=0.02),
    replace(_FOUR, name="Svix takes 1 s", latency=1.0, refused=0.05),
    replace(_FOUR, name="the limit is halved and doubled each minute", halved_every=60.0),
    replace(
        _FOUR,
        name="Svix allows 28/s, budget 240 s",
        used=0.9,  # the end of the backlog is a larger part of 5,000 events
        rate=28.0,
        events=5000,
        refused=1.0,
        seeds=10,
        seeds_without_nack=0.9,
    ),
    replace(
        _FOUR,
        name="Svix allows 12/s, budget 540 s",
        used=0.9,
        rate=12.0,
        budget=540.0,
        events=5000,
        seeds=10,
        seeds_without_nack=0.9,
        refused=1.0,
    ),
]
"""Rows with four instances, in which one other thing is different."""


def drain(scenario: Scenario, seed: int, give_up_after: float | None = None) -> Run:
    """One run of the relay. With `give_up_after`, one run of the obvious function.

    It ends after that many seconds.
    """

    async def main() -> Run:
        uniform = random.Random(seed).uniform  # noqa: S311 - reproducible, not secret
        svix = model.Svix(
            uniform,
            scenario.limit,
            burst=BURST,
            latency=scenario.latency,
            retry_after=scenario.retry_after,
        )
        relay = model.Relay(svix, uniform, instances=scenario.instances, budget=scenario.budget)
        function = relay if give_up_after is None else model.Obvious(svix)
        subscription = Subscription(function.deliver, scenario.policy)
        waiting: list[int] = []

        async def swap() -> None:
            await asyncio.sleep(min(scenario.swap_at, 1e9))
            relay.kill()
            relay.start()

        async def watch() -> None:
            while True:
                waiting.append(function.waiting)
                await asyncio.sleep(1)

        watching = [asyncio.create_task(swap()), asyncio.create_task(watch())]
        await subscription.run(model.backlog(scenario.events), give_up_after)
        for task in watching:
            task.cancel()
        return _run(svix, subscription, scenario, waiting)

    return virtual_time.run(main())


def _run(
    svix: model.Svix, subscription: Subscription, scenario: Scenario, waiting: list[int]
) -> Run:
    timeline = [[second, 0, 0] for second in range(int(svix.calls[-1][0]) + 1)]
    for at, is_refused in svix.calls:
        timeline[int(at)][1 + is_refused] += 1
    refused = sum(is_refused for _, is_refused in svix.calls)
    return Run(
        used=len(svix.taken) / (BURST + svix.allowed),
        refused=refused / len(svix.calls),
        nacks=len(subscription.nacked),
        seconds=svix.calls[-1][0],
        missing=scenario.events - min(len(svix.taken), len(subscription.acked)),
        timeline=[(second, taken, refused) for second, taken, refused in timeline],
        waiting=waiting,
    )


@dataclass(slots=True)
class Outcome:
    """A scenario's runs, and a run of the obvious function, as long as the longest of them."""

    scenario: Scenario
    runs: list[Run]
    obvious: Run

    @property
    def is_met(self) -> bool:
        """Whether every goal is met."""
        scenario, runs = self.scenario, self.runs
        without_nack = sum(not run.nacks for run in runs) / len(runs)
        return (
            min(run.used for run in runs) >= scenario.used
            and max(run.refused for run in runs) <= scenario.refused
            and without_nack >= scenario.seeds_without_nack
            and not any(run.missing for run in runs)
        )

    def row(self) -> list[str]:
        """One row of the table: the worst of the runs."""
        scenario, runs, obvious = self.scenario, self.runs, self.obvious
        used = min(run.used for run in runs)
        nacks = sorted(run.nacks for run in runs)
        shown = f"{nacks[-1]:,}"
        if scenario.seeds_without_nack < 1:
            shown += f" ({sum(map(bool, nacks))} of {len(runs)} runs)"
        return [
            scenario.name,
            f"{scenario.events:,}",
            f"{used:.1%}",
            f">= {scenario.used:.0%}",
            f"{max(run.refused for run in runs):.2%}",
            f"<= {scenario.refused:.0%}" if scenario.refused < 1 else "",
            shown,
            f"{obvious.used:.1%}",
            f"{obvious.refused:.0%}",
            f"{used / obvious.used:.1f}",
            "yes" if self.is_met else "NO",
        ]


HEADER = [
    "A backlog; Svix allows 50/s unless the row says otherwise",
    "events",
    "limit used",
    "goal",
    "refused",
    "goal",
    "nacks",
    "obvious function: limit used",
    "obvious function: refused",
    "ratio of limit used",
    "met",
]


def measure(scenarios: Sequence[Scenario]) -> list[Outcome]:
    """Make all runs, two at a time."""
    with ProcessPoolExecutor(2) as processes:
        running = {
            scenario.name: [
                processes.submit(drain, scenario, seed) for seed in range(scenario.seeds)
            ]
            for scenario in scenarios
        }
        outcomes = []
        for scenario in scenarios:
            runs = [run.result() for run in running[scenario.name]]
            seconds = max(run.seconds for run in runs)
            obvious = drain(scenario, 0, seconds)
            outcomes.append(Outcome(scenario, runs, obvious))
            print("  " + " | ".join(outcomes[-1].row()), flush=True)
    return outcomes


def tenth(scenario: Scenario) -> Scenario:
    """The scenario with a tenth of its events, for a quick look."""
    return replace(scenario, events=scenario.events // 10, seeds=min(scenario.seeds, 2))


def plot(outcome: Outcome, path: Path) -> None:
    """Draw the calls taken and refused and the pushes that wait, over time, for both functions."""
    import matplotlib as mpl  # noqa: PLC0415 - slow, and only the plot needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - slow, and only the plot needs it

    figure, axes = plt.subplots(2, 1, sharex=True, sharey=True, figsize=(9, 6))
    shown = {"relay, four instances": outcome.runs[0], "the obvious function": outcome.obvious}
    for axis, (name, run) in zip(axes, shown.items(), strict=True):
        seconds = [row[0] for row in run.timeline]
        taken, refused = ([row[column] for row in run.timeline] for column in (1, 2))
        bars = {"width": 1.0, "linewidth": 0.0}
        axis.bar(seconds, taken, color="#2a7f62", label="sent and taken by Svix", **bars)
        axis.bar(seconds, refused, bottom=taken, color="#c8443a", label="refused (429)", **bars)
        axis.axhline(RATE, color="black", linewidth=0.8, linestyle="--", label="Svix's limit")
        axis.set_title(
            f"{name}: {sum(taken):,} of {outcome.scenario.events:,} events in {run.seconds:.0f} s, "
            f"{run.used:.0%} of the limit used, {run.refused:.1%} of the calls refused, "
            f"{run.nacks:,} nacks",
            fontsize=9,
            loc="left",
        )
        axis.set_ylabel("calls a second")
        beside = axis.twinx()
        beside.plot(run.waiting, color="#4263a8", linewidth=1.2, label="waiting (right)")
        beside.set_ylim(0, 3300)
        beside.set_ylabel("pushes that wait")
        for each in (axis, beside):
            each.spines["top"].set_visible(False)
        if run is outcome.obvious:
            handles = [*axis.get_legend_handles_labels()[0], *beside.get_lines()]
            axis.legend(handles=handles, frameon=False, fontsize=8, ncols=4, loc="upper right")
    axes[0].set_ylim(0, 2.2 * RATE)
    axes[0].set_xlim(0, outcome.runs[0].seconds)
    axes[-1].set_xlabel("seconds")
    figure.text(
        0.01,
        0.005,
        "By Google's documentation, a subscriber that makes pushes wait gets up to 3,000 of them, "
        "and nacks delay all pushes by 0.1 to 60 s.\nIn the model, the window grows by one with "
        "each ack, and the delay doubles with each nack and halves with each ack. Virtual time.",
        fontsize=7.5,
    )
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.drain", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the events, and no plot")
    parser.add_argument("--virtual", action="store_true", help="nothing over HTTP")
    parser.add_argument(
        "--seeds", type=int, default=10, help="the maximum number of runs of each row"
    )
    arguments = parser.parse_args(argv)
    scenarios = [
        replace(each, seeds=min(each.seeds, arguments.seeds)) for each in (*SCENARIOS, *VARIATIONS)
    ]
    print("In virtual time:", flush=True)
    if arguments.quick:
        scenarios = list(map(tenth, scenarios))
    outcomes = measure(scenarios)
    tables = [markdown(HEADER, [outcome.row() for outcome in outcomes])]
    is_met = all(outcome.is_met for outcome in outcomes)
    if not arguments.quick:
        shown = outcomes[6]
        plot(shown, PLOT)
    with ProcessPoolExecutor(2) as processes:
        seeds = range(2 if arguments.quick else arguments.seeds)
        changes = list(processes.map(shares.change, seeds))
    tables.append(markdown(shares.HEADER, shares.rows(changes)))
    is_met &= all(each.is_met for each in changes)
    if not arguments.virtual:
        print("Over HTTP:", flush=True)
        results = asyncio.run(pushed.measure(quick=arguments.quick))
        tables.append(markdown(pushed.HEADER, [result.row() for result in results]))
        is_met &= all(result.is_met for result in results)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "drain.md").write_text("\n\n".join(tables) + "\n")
    (RESULTS / "drain.json").write_text(json.dumps([asdict(each) for each in outcomes]))
    print("", *tables, sep="\n\n")
    return 0 if is_met or arguments.quick else 1


if __name__ == "__main__":
    sys.exit(main())
