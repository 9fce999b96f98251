"""One instance stops, and another one starts: how soon do all reach their new shares?

This runs the relay's own delivery and pacer in virtual time (`bench/model.py`), while a backlog
keeps every place taken. No instance knows how many instances there are. Times are in seconds.
"""

import asyncio
import random
from dataclasses import dataclass

from bench import model
from local.push import Policy, Subscription
from tests import virtual_time

WITHIN = 60.0
"""The goal: the longest that finding the new shares may take."""
USED, FAIR = 0.95, 0.5
"""The remaining instances have reached their shares when together they use this share of the limit.
The new instance has reached its share when it has this part of an equal share."""

HEADER = ["4 instances; Svix allows 50/s", "seconds, at most", "goal", "refused meanwhile", "met"]

_WINDOW = 10.0
"""Calls are counted over this time."""
_BUSY = Policy(min_window=3000, initial_window=3000)
_ROOM = 3200
"""The places of the remaining instances. With fewer than the window, pushes would be nacked."""


@dataclass(frozen=True, slots=True)
class Shares:
    """How long it took; infinite if the shares were not reached."""

    stopped: float
    """From an instance's end until the others use the limit."""
    refused_without: float
    """The share of calls refused in the minute after it ended."""
    started: float
    """From an instance's start until it has its share, and all together use the limit."""
    refused_with: float
    """The share of calls refused in the minute after it started."""

    @property
    def is_met(self) -> bool:
        """Whether the shares were reached in time after both changes."""
        return max(self.stopped, self.started) <= WITHIN


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
    """How soon Svix took `together` calls a second, and the share refused within a minute.

    `newest` is how many of these calls the newest instance must have made, if that matters.
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
    """The rows of the table, with the worst of the seeds."""
    stopped = max(each.stopped for each in seeds)
    started = max(each.started for each in seeds)
    return [
        [
            f"an instance stops: time until the others use {USED:.0%} of the limit",
            f"{stopped:.0f}",
            f"<= {WITHIN:.0f}",
            f"{max(each.refused_without for each in seeds):.1%}",
            "yes" if stopped <= WITHIN else "NO",
        ],
        [
            (
                "an instance starts: time until it has half of an equal share "
                f"and all together use {USED:.0%} of the limit"
            ),
            f"{started:.0f}",
            f"<= {WITHIN:.0f}",
            f"{max(each.refused_with for each in seeds):.1%}",
            "yes" if started <= WITHIN else "NO",
        ],
    ]
