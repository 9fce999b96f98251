"""What a rate limit does: a backlog pushed over HTTP against Svix's limit, naive beside relay.

`python -m bench.drain` prints the figures with their targets, writes them to bench/results/ and
draws `bench/drain.png`. The push simulator is `local/push.py`, which says what of it is Google's
word; the limit is the Svix simulator's token bucket: 50 calls a second, burst 50, 100 ms latency.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from pathlib import Path

import aiohttp

from bench.functions import NAIVE, RELAY, RESULTS, ROOT, TOKEN, function, push
from local.conduct import Fault
from local.push import Arrival, Subscription
from local.simulator import Simulator

PLOT = ROOT / "bench" / "drain.png"
RATE, BURST, LATENCY = 50.0, 50.0, 0.1
NAIVE_LIMIT = 120.0  # seconds after which it is stopped


@dataclass(slots=True)
class Figures:
    """One run's outcome; `timeline` holds [second, accepted, refused] for the plot."""

    name: str
    share_of_limit: float
    rejected: float
    nacks: int
    seconds: float
    delivered: int
    twice: int
    notes: dict[str, float] = field(default_factory=dict)
    timeline: list[tuple[int, int, int]] = field(default_factory=list)


@contextlib.contextmanager
def relay(svix_url: str, directory: Path) -> Iterator[str]:
    """The function with the embedded ledger; its URL."""
    environment = {"LEDGER": f"sqlite:{directory / 'ledger.db'}"}
    with function(RELAY, svix_url, environment) as started:
        yield started.url


@contextlib.contextmanager
def naive(svix_url: str, threads: int | None) -> Iterator[str]:
    """The naive function, with its framework's default threads or more."""
    environment = {"NAIVE_LEDGER": ":memory:"}
    if threads is not None:
        environment["THREADS"] = str(threads)
    with function(NAIVE, svix_url, environment) as started:
        yield started.url


@contextlib.asynccontextmanager
async def pushing_to(urls: Sequence[str]) -> AsyncIterator[Callable[[int], Awaitable[bool]]]:
    """Delivers a message by its number, to the instance that has the fewest at work."""
    busy = dict.fromkeys(urls, 0)
    # Longer than the ack deadline: the function always answers first.
    # And connections are given up before the server, which keeps them for 5 s, does so.
    connector = aiohttp.TCPConnector(limit=4000, keepalive_timeout=2)
    async with aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(total=130)
    ) as client:

        async def deliver(number: int) -> bool:
            url = min(busy, key=busy.__getitem__)
            busy[url] += 1
            try:
                async with client.post(f"{url}/notifications", json=push(number)) as answer:
                    return answer.status in {200, 204}
            except (aiohttp.ClientError, TimeoutError) as failure:
                print(f"    a push was not answered: {failure}", flush=True)
                return False  # as Pub/Sub sees it: a nack
            finally:
                busy[url] -= 1

        yield deliver


def figures(
    name: str,
    simulator: Simulator,
    subscription: Subscription,
    since: float,
    allowed: float | None,
    given_up: float,
) -> Figures:
    """What the run came to; `allowed` calls (None: at the one limit, until the last delivery)."""
    statuses = Counter(call.status for call in simulator.calls)
    seconds = given_up
    if subscription.is_done:
        seconds = max(subscription.acked.values())
    if allowed is None:
        allowed = BURST + RATE * seconds
    timeline: dict[int, list[int]] = {}
    for call in simulator.calls:
        counts = timeline.setdefault(int(call.at - since), [0, 0])
        counts[0 if call.status == HTTPStatus.ACCEPTED else 1] += 1
    held = Counter(message.event_id for message in simulator.messages)
    return Figures(
        name=name,
        share_of_limit=round(len(simulator.messages) / allowed, 3),
        rejected=round(statuses[429] / max(1, statuses.total()), 4),
        nacks=len(subscription.nacked),
        seconds=round(seconds, 1),
        delivered=len(held),
        twice=sum(count > 1 for count in held.values()),
        timeline=[(second, *counts) for second, counts in sorted(timeline.items())],  # type: ignore[misc] # two counts
    )


async def drain(
    name: str,
    start: Callable[[str, contextlib.ExitStack], list[str]],
    events: int,
    *,
    limit: float = NAIVE_LIMIT,
    limits: Sequence[float] = (),
) -> Figures:
    """A backlog of `events`; with `limits`, the rate changes every 20 s and it ends after them."""
    print(f"  {name} ...", flush=True)
    async with Simulator(
        token=TOKEN, latency=LATENCY, rate=RATE, burst=BURST, retry_after="seconds"
    ) as sim:
        with contextlib.ExitStack() as stack:
            async with pushing_to(start(sim.url, stack)) as deliver:
                subscription = Subscription(deliver)
                since = asyncio.get_running_loop().time()

                async def change() -> None:
                    for rate in limits:
                        sim.conduct.rate = rate
                        await asyncio.sleep(20)

                changing = asyncio.create_task(change())
                arrivals = [Arrival(0.0, number) for number in range(events)]
                given_up = 20.0 * len(limits) if limits else limit
                await subscription.run(arrivals, given_up)
                changing.cancel()
                allowed = BURST + 20 * sum(limits) if limits else None
                return figures(name, sim, subscription, since, allowed, given_up)


async def outage(name: str, start: Callable[[str, contextlib.ExitStack], list[str]]) -> Figures:
    """45 s of outage, three kinds in turn, under a steady 20/s."""
    print(f"  {name} ...", flush=True)
    begins, each, per_second = 10.0, 15.0, 20
    ends = begins + 3 * each
    async with Simulator(token=TOKEN, latency=LATENCY) as sim:
        with contextlib.ExitStack() as stack:
            async with pushing_to(start(sim.url, stack)) as deliver:
                subscription = Subscription(deliver)
                since = asyncio.get_running_loop().time()

                async def fail() -> None:
                    await asyncio.sleep(begins)
                    sim.inject(Fault("status", status=500, method="*"))
                    await asyncio.sleep(each)
                    sim.clear_faults()
                    sim.inject(Fault("hang", method="*"))
                    await asyncio.sleep(each)
                    sim.clear_faults()
                    await sim.stop_listening()
                    await asyncio.sleep(each)
                    await sim.start_listening()

                failing = asyncio.create_task(fail())
                count = int((ends + 30) * per_second)
                arrivals = [Arrival(number / per_second, number) for number in range(count)]
                await subscription.run(arrivals)
                await failing
                result = figures(name, sim, subscription, since, float(count), ends)
                late = {a.message for a in arrivals if ends - 30 <= a.at < ends}
                acked = subscription.acked.values()
                result.notes = {
                    "nacks of what arrived in the last 30 s": len(
                        late & {message for _, message in subscription.nacked}
                    ),
                    "first delivery after recovery, s": round(
                        min(at for at in acked if at > ends) - ends, 1
                    ),
                    "delivered/s, 10 to 20 s after recovery": round(
                        sum(ends + 10 <= at < ends + 20 for at in acked) / 10, 1
                    ),
                }
                return result


async def measure(directory: Path, *, quick: bool) -> list[Figures]:
    """All runs, one after the other."""
    ledgers = iter(range(100))

    def relays(count: int) -> Callable[[str, contextlib.ExitStack], list[str]]:
        def start(svix_url: str, stack: contextlib.ExitStack) -> list[str]:
            # Instances share a ledger, as they share Firestore.
            shared = directory / str(next(ledgers))
            shared.mkdir()
            return [stack.enter_context(relay(svix_url, shared)) for _ in range(count)]

        return start

    def naives(threads: int | None) -> Callable[[str, contextlib.ExitStack], list[str]]:
        return lambda svix_url, stack: [stack.enter_context(naive(svix_url, threads))]

    results = [await drain("relay", relays(1), 2000)]
    if quick:
        return results
    return [
        *results,
        await drain("relay, two instances", relays(2), 2000),
        await drain("relay, limit 50, 25, 50", relays(1), 5000, limits=(50, 25, 50)),
        await outage("relay, 45 s outage", relays(1)),
        await drain("naive, default threads", naives(None), 2000),
        await drain("naive, 200 threads", naives(200), 2000),
    ]


def show(results: Sequence[Figures]) -> None:
    """The table."""
    print(
        f"\n{'':26}{'limit used':>11}{'refused':>9}{'nacks':>7}"
        f"{'seconds':>9}{'events':>8}{'twice':>6}"
    )
    for run in results:
        print(
            f"{run.name:26}{run.share_of_limit:>11.1%}{run.rejected:>9.2%}{run.nacks:>7}"
            f"{run.seconds:>9.1f}{run.delivered:>8}{run.twice:>6}"
        )
        for note, value in run.notes.items():
            print(f"    {note}: {value:g}")
    print(
        "\nTargets: one instance 95 %, 1 % refused, no nack; two 90 %, 2 %; a changing limit 90 %;"
        "\nthe outage: nothing lost or twice, no nack for its last 30 s, full rate within 10 s."
    )


def plot(results: Sequence[Figures], path: Path) -> None:
    """Accepted and refused calls over time, naive beside relay."""
    import matplotlib as mpl  # noqa: PLC0415 - slow, and for the plot alone

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - slow, and for the plot alone

    shown = [
        run
        for run in results
        if run.name in {"relay", "naive, default threads", "naive, 200 threads"}
    ]
    figure, axes = plt.subplots(
        len(shown), 1, sharex=True, sharey=True, figsize=(9, 2.4 * len(shown))
    )
    for axis, run in zip([axes] if len(shown) == 1 else axes, shown, strict=True):
        seconds = [row[0] for row in run.timeline]
        axis.bar(
            seconds,
            [row[1] for row in run.timeline],
            width=1,
            color="#2a7f62",
            label="accepted by Svix",
        )
        axis.bar(
            seconds,
            [row[2] for row in run.timeline],
            bottom=[row[1] for row in run.timeline],
            width=1,
            color="#c8443a",
            label="refused (429)",
        )
        axis.axhline(RATE, color="black", linewidth=0.8, linestyle="--", label="Svix's limit")
        axis.set_title(
            f"{run.name}: {run.delivered} of 2,000 events in {run.seconds:.0f} s, "
            f"{run.share_of_limit:.0%} of the limit used, {run.rejected:.1%} of calls refused",
            fontsize=10,
            loc="left",
        )
        axis.set_ylabel("calls a second")
        axis.spines[["top", "right"]].set_visible(False)
    axes_list = [axes] if len(shown) == 1 else list(axes)
    axes_list[0].legend(frameon=False, fontsize=8, ncols=3, loc="upper right")
    axes_list[-1].set_xlabel("seconds")
    axes_list[-1].set_xlim(0, NAIVE_LIMIT)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.drain", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one run of the relay alone, no plot")
    arguments = parser.parse_args(argv)
    # Functions are stopped with calls under way: that the simulator notices is not news.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    print("About ten minutes:" if not arguments.quick else "About a minute:")
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        results = asyncio.run(measure(Path(directory), quick=arguments.quick))
    show(results)
    if not arguments.quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "drain.json").write_text(json.dumps([asdict(run) for run in results], indent=1))
        plot(results, PLOT)
        print(f"\nWritten: {RESULTS / 'drain.json'}, {PLOT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
