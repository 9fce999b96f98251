"""An instance stops, another one starts: when have the others reached their new shares?

In virtual time, through the relay's own delivery and pacer (`bench/model.py`), while a backlog
keeps every place taken. Nobody tells an instance how many there are. Times are in seconds.
"""

import asyncio
import random
from dataclasses import dataclass

from bench import model
from local.push import Policy, Subscription
from tests import virtual_time

WITHIN = 60.0
"""The longest that it may take."""
USED, FAIR = 0.95, 0.5
"""Those that remain have reached their shares when together they use so much of the limit; the one
that starts, when it has so much of an equal share."""

HEADER = ["4 instances at 50 a second", "seconds, at most", "goal", "refused meanwhile", "met"]

_WINDOW = 10.0
"""Calls are counted over so long."""
_BUSY = Policy(floor=3000, first_window=3000)
_ROOM = 3200
"""Places of those that remain: fewer than the window would be another trouble."""


@dataclass(frozen=True, slots=True)
class Shares:
    """How long it took; infinite where it was not reached."""

    stopped: float
    """From an instance's end until the others use the limit."""
    refused_without: float
    """Of the calls, in the minute after it ended."""
    started: float
    """From an instance's start until it has its share, and all together use the limit."""
    refused_with: float
    """Of the calls, in the minute after it started."""


def change(seed: int, *, instances: int = 4, rate: float = 50.0) -> Shares:
    """Stop one of the instances once all have found their shares, then start another one."""

    async def main() -> Shares:
        uniform = random.Random(seed).uniform  # noqa: S311 - reproducible, not secret
        svix = model.Svix(uniform, lambda _: rate)
        places = _ROOM * instances // (instances - 1)
        budget = model.BUDGET * 50.0 / rate
        relay = model.Relay(svix, uniform, instances=instances, places=places, budget=budget)
        backlog = model.backlog(int(400 * rate))
        pushing = asyncio.create_task(Subscription(relay.deliver, _BUSY).run(backlog))
        await asyncio.sleep(120)
        relay.kill()
        stopped, refused_without = await _reached(svix, relay, USED * rate, None)
        relay.start()
        fair = FAIR * rate / instances
        started, refused_with = await _reached(svix, relay, USED * rate, fair)
        pushing.cancel()
        return Shares(stopped, refused_without, started, refused_with)

    return virtual_time.run(main())


async def _reached(
    svix: model.Svix, relay: model.Relay, together: float, newest: float | None
) -> tuple[float, float]:
    """After how long the calls taken a second came to that; and the share refused in a minute.

    `newest`: how many of them the newest instance has, at least.
    """
    began, called = model.now(), len(svix.calls)
    reached = float("inf")
    counts: list[list[int]] = []
    while model.now() < began + WITHIN:
        counts.append([each.pacer.state().taken for each in relay.instances])
        await asyncio.sleep(1)
        if len(counts) <= _WINDOW:
            continue
        taken = [
            (now - then) / _WINDOW
            for then, now in zip(counts[-1 - int(_WINDOW)], counts[-1], strict=True)
        ]
        is_reached = sum(taken) >= together and (newest is None or taken[-1] >= newest)
        if is_reached and reached == float("inf"):
            reached = model.now() - 1 - began
    calls = svix.calls[called:]
    return reached, sum(refused for _, refused in calls) / len(calls)


def rows(seeds: list[Shares]) -> list[list[str]]:
    """The worst of the seeds, as lines of the table."""
    stopped = max(each.stopped for each in seeds)
    started = max(each.started for each in seeds)
    return [
        [
            f"one stops: the others use {USED:.0%} of the limit after",
            f"{stopped:.0f}",
            f"<= {WITHIN:.0f}",
            f"{max(each.refused_without for each in seeds):.1%}",
            "yes" if stopped <= WITHIN else "NO",
        ],
        [
            "one starts: it has half an equal share, and all use as much, after",
            f"{started:.0f}",
            f"<= {WITHIN:.0f}",
            f"{max(each.refused_with for each in seeds):.1%}",
            "yes" if started <= WITHIN else "NO",
        ],
    ]
