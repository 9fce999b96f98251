"""Waiting before another try: a clock, a sleep, and pauses that double.

Times are seconds.
"""

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

_JITTER = 0.1
"""The share by which pauses are lengthened at random, so that requests drift apart."""


@dataclass(frozen=True, slots=True)
class Waits:
    """The clock, and how time is let pass; tests pass their own."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    uniform: Callable[[float, float], float] = random.uniform

    def pauses(self, first: float, longest: float) -> Iterator[float]:
        """The pause before each new try: `first`, doubled each time up to `longest`, jittered."""
        for doublings in itertools.count():
            yield min(first * 2 ** min(doublings, 20), longest) * self.uniform(1, 1 + _JITTER)


REAL_TIME = Waits()
