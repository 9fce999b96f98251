"""One pause. Uses no clock: the time is passed to each method. Times are seconds."""

import math
from collections.abc import Callable

from relay.pacing import tuning

Uniform = Callable[[float, float], float]
"""Draws a random number between two numbers."""


class Pause:
    """A period during which only probes are sent: calls that test whether it can end.

    Each probe that fails or is refused extends it. `pauses.py` lists the kinds of pause and decides
    when each ends.
    """

    def __init__(self, uniform: Uniform) -> None:
        self._uniform = uniform
        self.began_at: float | None = None
        """None: there is no pause."""
        self.until = -math.inf
        """The earliest time for the next probe."""
        self.probes: dict[str, float] = {}
        """The projects with an unanswered probe, each with the time when the probe got its turn."""
        self.failed: dict[str, str] = {}
        """The events that have failed since the last success, each with its project. For a
        project's own pause, a success is a processed send of that project."""
        self._extensions = 0
        """How often this pause was extended, including its begin."""

    @property
    def is_on(self) -> bool:
        """Whether there is a pause now."""
        return self.began_at is not None

    @property
    def next_turn_at(self) -> float:
        """When the next turn may be given. During the pause it is a probe."""
        if self.began_at is None:
            return -math.inf
        probed_at = max(self.probes.values(), default=-math.inf)
        return max(self.until, probed_at + tuning.PROBE_PATIENCE)

    def began_after(self, given_at: float) -> bool:
        """Whether the pause began after this turn was given.

        If so, the turn is not a probe.
        """
        return self.began_at is not None and given_at < self.began_at

    def extend(self, at: float, seconds: float) -> None:
        """Begin the pause or extend it. The next probe may be sent `seconds` after `at`."""
        if self.began_at is None:
            self.began_at = at
        self._extensions += 1
        self.until = at + seconds * self._uniform(1, 1 + tuning.JITTER)

    def back_off(self, given_at: float, at: float, first: float = tuning.FIRST_PAUSE) -> None:
        """A turn failed: begin the pause, or extend it by twice as much as last time.

        An extension begins when the probe's turn was given, so a hanging probe adds no time to it.
        """
        self.extend(given_at if self.is_on else at, self.doubled(first, tuning.LONGEST_OUTAGE))

    def doubled(self, first: float, longest: float) -> float:
        """The next extension in seconds: `first`, doubled with each extension, up to `longest`."""
        return min(first * 2.0 ** min(self._extensions, 10), longest)

    def end(self) -> None:
        """End the pause, and forget what failed."""
        self.began_at, self.until, self._extensions = None, -math.inf, 0
        self.probes.clear()
        self.failed.clear()
