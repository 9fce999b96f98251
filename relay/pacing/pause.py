"""One reason to wait. Pure: every method is told the time; times are float seconds."""

import math
from collections.abc import Callable

from relay.pacing import tuning

Uniform = Callable[[float, float], float]
"""Draws a number between two."""


class Pause:
    """One reason to wait. It ends when a probe succeeds, and grows with each that does not."""

    def __init__(self, uniform: Uniform) -> None:
        self._uniform = uniform
        self.began_at: float | None = None
        """None: there is no pause."""
        self.until = -math.inf
        """No probe goes before."""
        self.probes: dict[str, float] = {}
        """The projects whose probe is unanswered, and when each got its turn."""
        self.failed: dict[str, str] = {}
        """The events that failed since one was last taken, and the project of each."""
        self._waits = 0
        """How often this pause was begun or prolonged."""

    @property
    def is_on(self) -> bool:
        """Whether there is a pause."""
        return self.began_at is not None

    @property
    def next_turn_at(self) -> float:
        """When somebody may have a turn; in a pause it is a probe."""
        if self.began_at is None:
            return -math.inf
        asked_at = max(self.probes.values(), default=-math.inf)
        return max(self.until, asked_at + tuning.PROBE_PATIENCE)

    def began_after(self, given_at: float) -> bool:
        """Whether a turn of this time is from before the pause: its answer says nothing of now."""
        return self.began_at is not None and given_at < self.began_at

    def wait(self, at: float, seconds: float) -> None:
        """Begin, or prolong, from this time on."""
        if self.began_at is None:
            self.began_at = at
        self._waits += 1
        self.until = at + seconds * self._uniform(1, 1 + tuning.JITTER)

    def back_off(self, given_at: float, at: float, first: float = tuning.FIRST_PAUSE) -> None:
        """The call of a turn failed: begin, or prolong for twice as long as before.

        A probe that hung was pause enough: what is prolonged counts from when the probe was given.
        """
        self.wait(given_at if self.is_on else at, self.doubled(first, tuning.LONGEST_OUTAGE))

    def doubled(self, first: float, longest: float) -> float:
        """The seconds of the next wait: `first`, doubled with each wait, at most `longest`."""
        return min(first * 2.0 ** min(self._waits, 10), longest)

    def end(self) -> None:
        """A probe succeeded."""
        self.began_at, self.until, self._waits = None, -math.inf, 0
        self.probes.clear()
        self.failed.clear()
