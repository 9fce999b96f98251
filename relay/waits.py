"""Waiting between retries: a clock, a sleep, and pauses that double.

Times are seconds.
"""

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

_JITTER = 0.1
"""Each pause is up to this share longer, at random, so that requests do not retry together."""


@dataclass(frozen=True, slots=True)
class Waits:
    """The clock, the sleep and the random numbers of code that waits. Tests pass their own."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    uniform: Callable[[float, float], float] = random.uniform

    def pauses(self, first: float, longest: float) -> Iterator[float]:
        """The pause before each retry: `first`, doubled each time up to `longest`, plus jitter."""
        for doublings in itertools.count():
            yield min(first * 2 ** min(doublings, 20), longest) * self.uniform(1, 1 + _JITTER)


REAL_TIME = Waits()
