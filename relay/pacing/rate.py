"""How many calls a second may go to Svix. Each instance finds its own rate from Svix's refusals.

    no refusal yet   a window bounds the open turns; it grows with each processed send
    searching        after the first refusal the rate doubles with use, until the next refusal
    climbing         each refusal cuts the rate by a tenth; with use it grows again, slowly at first

The rate is in use while requests wait for turns. Without use it is not tested, so it does not grow.

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
        """The maximum of open turns until the first refusal (`traffic.py` has two exceptions)."""
        self.next_at = -math.inf
        """The earliest time for the next turn."""
        self._level: float | None = None
        """The rate that the last refusal set. None: there was no refusal yet."""
        self._searching = False
        """Whether the rate searches for the limit: from the first refusal that changes the rate
        until the second."""
        self._used = 0.0
        """For how many seconds the rate was in use since the level was set."""
        self._refused_at = -math.inf
        """The time of the last refusal that changed the rate."""
        self._second = 0.0
        """The current second of the clock."""
        self._in_second = self._in_last_second = 0
        """Processed sends in the current second, and in the second before it."""
        self._taken_since = 0
        """Processed sends since the first refusal, while searching."""

    @property
    def current(self) -> float | None:
        """The current rate; None until the first refusal."""
        if self._level is None:
            return None
        if self._searching:
            return self._level * 2 ** (self._used / tuning.DOUBLING)
        return self._level * (1 + (self._used / tuning.CLIMB) ** 3)

    def give(self, at: float) -> float:
        """A turn is given. Returns the seconds to the next turn, 0 until the first refusal."""
        if (rate := self.current) is None:
            return 0.0
        self.next_at = max(self.next_at, at - tuning.MAKE_UP) + 1 / rate
        return 1 / rate

    def take_back(self, interval: float) -> None:
        """A turn ended without a call: the next turn may be given `interval` seconds earlier."""
        self.next_at -= interval

    def use(self, interval: float) -> None:
        """Count `interval` seconds as time in which the rate was in use.

        To be called when a request that had to wait for its turn begins its call.
        """
        self._used += interval

    def restart_window(self) -> None:
        """Make the window small again, in a pause.

        Otherwise a Svix that has just recovered would get a whole window of calls simultaneously.
        """
        self.window = tuning.FIRST_WINDOW

    def taken(self, at: float) -> None:
        """Svix processed a send."""
        if self._level is None:
            self.window = min(self.window + 1, tuning.LARGEST_WINDOW)
            self._to_second(at)
            self._in_second += 1
        elif self._searching:
            self._taken_since += 1

    def refused(self, given_at: float, interval: float, at: float) -> bool:
        """Svix refused a turn's call. Returns whether the refusal changed the rate.

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
                # The limit lies between two figures. The rate is above the limit, because the
                # search overshot. The sends that Svix processed per second may be below it, because
                # fewer may have been made than Svix allows. So use the mean of the two, or the cut
                # rate if that is lower.
                taken = self._taken_since / (at - self._refused_at)
                self._level = min(self._level, (taken + rate) / 2)
                self._searching = False
        self._level = max(self._level, tuning.LOWEST_LEVEL)
        self._used = 0.0
        self._refused_at = at
        return True

    def _to_second(self, at: float) -> None:
        """Make the second of `at` the current second."""
        second = math.floor(at)
        if second != self._second:
            self._in_last_second = self._in_second if second == self._second + 1 else 0
            self._in_second, self._second = 0, second
