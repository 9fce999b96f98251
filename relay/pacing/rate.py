"""How fast calls to Svix may go: a rate that each instance finds alone, as nobody tells it.

Pure: knows no clock and no loop; every method is told the time. Times are float seconds, rates
calls a second.

    no limit met   only the calls in flight are bounded, by a window that grows with each one taken
    searching      from the first refusal on: the rate doubles with use, until it is refused
    climbing       a refusal cuts the rate by a tenth; with use it climbs again, slowly at first
"""

import math

from relay.pacing import tuning


class Rate:
    """The rate of one instance. Only the refusal of a turn given after the last one teaches it."""

    def __init__(self) -> None:
        self.window = tuning.FIRST_WINDOW
        """Calls in flight at most, while no limit has been met."""
        self.next_at = -math.inf
        """No turn is given before."""
        self._level: float | None = None
        """The rate right after the last refusal that taught something. None: no limit met yet."""
        self._searching = False
        """Whether only one refusal has been met so far."""
        self._used = 0.0
        """Seconds of sending at the full rate since the level was set."""
        self._refused_at = -math.inf
        """When the last refusal was answered that taught something."""
        self._second = 0.0
        """The running second of the clock."""
        self._in_second = self._in_last_second = 0
        """Calls taken in the running second, and in the one before."""
        self._taken_since = 0
        """Calls taken since the first refusal, while searching."""

    @property
    def now(self) -> float | None:
        """The rate, as of now; None while no limit has been met."""
        if self._level is None:
            return None
        if self._searching:
            return self._level * 2 ** (self._used / tuning.DOUBLING)
        return self._level * (1 + (self._used / tuning.CLIMB) ** 3)

    def give(self, at: float) -> float:
        """A turn is given; the seconds of sending that it stands for (0 without a limit)."""
        if (rate := self.now) is None:
            return 0.0
        self.next_at = max(self.next_at, at - tuning.MAKE_UP) + 1 / rate
        return 1 / rate

    def take_back(self, interval: float) -> None:
        """The call of a turn was not made: the next in line may go at once."""
        self.next_at -= interval

    def use(self, interval: float) -> None:
        """A call begins for whose turn somebody had to wait, so the rate is in full use."""
        self._used += interval

    def restart_window(self) -> None:
        """Svix is down: when it is back, it is not met at once by all who waited."""
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
        """Svix refused the call of this turn; whether that taught something."""
        if given_at <= self._refused_at:
            return False
        if self._level is None or not interval:
            self._to_second(at)
            self._level = float(max(self._in_second, self._in_last_second))
            self._searching = True
            self.next_at = at + tuning.SILENCE
        else:
            rate = 1 / interval  # what was refused is the rate when the turn was given
            self._level = tuning.CUT * rate
            if self._searching:
                # What was taken misses what was not asked for, and the rate overshot: the middle.
                taken = self._taken_since / (at - self._refused_at)
                self._level = min(self._level, (taken + rate) / 2)
                self._searching = False
        self._level = max(self._level, tuning.LOWEST_LEVEL)
        self._used = 0.0
        self._refused_at = at
        return True

    def _to_second(self, at: float) -> None:
        """Go on to the second of `at`."""
        second = math.floor(at)
        if second != self._second:
            self._in_last_second = self._in_second if second == self._second + 1 else 0
            self._in_second, self._second = 0, second
