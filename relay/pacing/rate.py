"""How fast calls to Svix may go. Each instance finds its rate by itself, from Svix's refusals.

    no limit met   a window bounds the calls in flight; it grows with each event that Svix takes
    searching      after the first refusal the rate doubles with use, until the next refusal
    climbing       each refusal cuts the rate by a tenth; with use it grows again, slowly at first

Uses no clock and no event loop: the time is passed to each method. Times are seconds, rates are
calls a second.
"""

import math

from relay.pacing import tuning


class Rate:
    """The rate of one instance.

    A refusal changes the rate only if its turn was given after the last change. Refusals of earlier
    turns were caused by the old rate.
    """

    def __init__(self) -> None:
        self.window = tuning.FIRST_WINDOW
        """The most calls in flight, while no limit has been met."""
        self.next_at = -math.inf
        """The earliest time for the next turn."""
        self._level: float | None = None
        """The rate that the last refusal set. None: no limit has been met yet."""
        self._searching = False
        """Whether the search for the limit goes on: Svix has refused only once."""
        self._used = 0.0
        """For how many seconds the full rate was used since the level was set."""
        self._refused_at = -math.inf
        """When the last refusal that changed the rate came."""
        self._second = 0.0
        """The current second of the clock."""
        self._in_second = self._in_last_second = 0
        """Events taken in the current second, and in the one before."""
        self._taken_since = 0
        """Events taken since the first refusal, while searching."""

    @property
    def now(self) -> float | None:
        """The rate now; None while no limit has been met."""
        if self._level is None:
            return None
        if self._searching:
            return self._level * 2 ** (self._used / tuning.DOUBLING)
        return self._level * (1 + (self._used / tuning.CLIMB) ** 3)

    def give(self, at: float) -> float:
        """A turn is given. Returns the interval to the next one in seconds, 0 without a limit."""
        if (rate := self.now) is None:
            return 0.0
        self.next_at = max(self.next_at, at - tuning.MAKE_UP) + 1 / rate
        return 1 / rate

    def take_back(self, interval: float) -> None:
        """A turn's call was not made: the next turn may be given earlier by this."""
        self.next_at -= interval

    def use(self, interval: float) -> None:
        """A call begins after a wait for its turn, so the rate was in full use for this long."""
        self._used += interval

    def restart_window(self) -> None:
        """Svix is down: make the window small again.

        Otherwise a Svix that has just recovered would get all waiting calls at once.
        """
        self.window = tuning.FIRST_WINDOW

    def taken(self, at: float) -> None:
        """Svix took an event."""
        if self._level is None:
            self.window = min(self.window + 1, tuning.LARGEST_WINDOW)
            self._to_second(at)
            self._in_second += 1
        elif self._searching:
            self._taken_since += 1

    def refused(self, given_at: float, interval: float, at: float) -> bool:
        """Svix refused a turn's call. Returns whether that changed the rate.

        `given_at` and `interval` are the turn's; `at` is the time of the answer.
        """
        if given_at <= self._refused_at:
            return False
        if self._level is None or not interval:
            self._to_second(at)
            self._level = float(max(self._in_second, self._in_last_second))
            self._searching = True
            self.next_at = at + tuning.SILENCE
        else:
            rate = 1 / interval  # the rate when the turn was given, which was too high
            self._level = tuning.CUT * rate
            if self._searching:
                # The limit lies between two figures. The rate is too high, because the search
                # overshot. What Svix took per second is too low, because fewer events may have
                # been sent than Svix would have taken. So take the middle.
                taken = self._taken_since / (at - self._refused_at)
                self._level = min(self._level, (taken + rate) / 2)
                self._searching = False
        self._level = max(self._level, tuning.LOWEST_LEVEL)
        self._used = 0.0
        self._refused_at = at
        return True

    def _to_second(self, at: float) -> None:
        """Make the second of `at` the current one."""
        second = math.floor(at)
        if second != self._second:
            self._in_last_second = self._in_second if second == self._second + 1 else 0
            self._in_second, self._second = 0, second
