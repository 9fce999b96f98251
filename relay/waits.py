"""Waiting between tries: a clock, a sleep, and pauses that double.

Times are seconds.
"""

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

_JITTER = 0.1
"""A pause is lengthened at random by up to this share, so that requests do not retry together."""


@dataclass(frozen=True, slots=True)
class Waits:
    """The clock, the sleep and the random numbers of whatever waits. Tests pass their own."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    uniform: Callable[[float, float], float] = random.uniform

    def pauses(self, first: float, longest: float) -> Iterator[float]:
        """The pause before each new try: `first`, doubled each time up to `longest`, with jitter.

        Jitter comes on top of `longest`.
        """
        for doublings in itertools.count():
            yield min(first * 2 ** min(doublings, 20), longest) * self.uniform(1, 1 + _JITTER)


REAL_TIME = Waits()
