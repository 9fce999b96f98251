"""One pause. Uses no clock: the time is passed to each method. Times are seconds."""

import math
from collections.abc import Callable

from relay.pacing import tuning

Uniform = Callable[[float, float], float]
"""Draws a random number between two numbers."""


class Pause:
    """A period in which only probes are made: calls that test whether it can end.

    It ends when a probe succeeds. It gets longer with each probe that fails.
    """

    def __init__(self, uniform: Uniform) -> None:
        self._uniform = uniform
        self.began_at: float | None = None
        """None: there is no pause."""
        self.until = -math.inf
        """The earliest time for the next probe."""
        self.probes: dict[str, float] = {}
        """By project, when the probe that is still unanswered got its turn."""
        self.failed: dict[str, str] = {}
        """The events that have failed since Svix last took one; each with its project."""
        self._waits = 0
        """How often this pause was begun or extended."""

    @property
    def is_on(self) -> bool:
        """Whether the pause lasts now."""
        return self.began_at is not None

    @property
    def next_turn_at(self) -> float:
        """When the next turn may be given. In a pause that turn is a probe."""
        if self.began_at is None:
            return -math.inf
        probed_at = max(self.probes.values(), default=-math.inf)
        return max(self.until, probed_at + tuning.PROBE_PATIENCE)

    def began_after(self, given_at: float) -> bool:
        """Whether the pause began after this turn was given.

        Then the turn's answer says nothing about whether the pause can end.
        """
        return self.began_at is not None and given_at < self.began_at

    def wait(self, at: float, seconds: float) -> None:
        """Begin or extend the pause, for `seconds` from `at` on."""
        if self.began_at is None:
            self.began_at = at
        self._waits += 1
        self.until = at + seconds * self._uniform(1, 1 + tuning.JITTER)

    def back_off(self, given_at: float, at: float, first: float = tuning.FIRST_PAUSE) -> None:
        """A turn's call failed: begin the pause, or extend it for twice as long as last time.

        An extension counts from when the probe was given, so a probe that hung adds no more time.
        """
        self.wait(given_at if self.is_on else at, self.doubled(first, tuning.LONGEST_OUTAGE))

    def doubled(self, first: float, longest: float) -> float:
        """The length of the next wait in seconds: `first`, doubled each time, up to `longest`."""
        return min(first * 2.0 ** min(self._waits, 10), longest)

    def end(self) -> None:
        """A probe succeeded."""
        self.began_at, self.until, self._waits = None, -math.inf, 0
        self.probes.clear()
        self.failed.clear()
