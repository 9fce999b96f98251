"""When the next call to Svix may go: each instance finds, alone, a rate that nobody tells it.

A 429 pauses sending; then one probe goes, and once it is taken all follow at the rate that Svix
turned out to allow, which grows again until the next 429. Requests wait in the order of their
deadlines, which is the order they came in, and a retry goes back to its place.
Pure but for the clock and the loop's timers.
"""

import asyncio
import contextlib
import heapq
import itertools
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from relay.outcome import Answer, Outcome, Verdict

_FIRST_RATE = 50.0  # calls a second; few enough for a small plan, and the burst it allows
_DOUBLING_SECONDS = 2.0  # until a limit is met; faster, and more is in flight when it is

# With a limit known the rate follows a cubic curve, as TCP CUBIC's window does
# (https://www.rfc-editor.org/rfc/rfc9438): soon back up, level near the limit, and away from there
# ever faster, for a limit that is not met has been raised.
_CUT = 0.1  # the share that a refusal takes off at once
_LEVEL_SECONDS = 8.0  # from the cut until the curve is level
_CLIMB = 0.8  # calls a second, each second: the same for all, so that who has less catches up
_LOWEST_SHARE = 0.9  # of the last rate: one refusal may be another instance's doing

_FAILURES_IN_A_ROW = 5  # one lost call stops nobody; five with none taken between is an outage
_FIRST_PAUSE = 0.5  # seconds, doubled with each probe that fails
_LONGEST_OUTAGE_PAUSE = 5.0  # seconds: so long may a recovery stay unnoticed
_LONGEST_REFUSAL_PAUSE = 60.0  # seconds, whatever Retry-After says: a probe a minute costs nothing
_JITTER = 0.1  # the share by which pauses and back-offs are lengthened, so that instances part

_HEALTHY = {Verdict.ACCEPTED, Verdict.CONFLICT, Verdict.NOT_FOUND, Verdict.REJECTED}


@dataclass(eq=False)
class TurnedAway(Exception):
    """There is no turn by the deadline; `retry_after` is in seconds."""

    outcome: Outcome
    retry_after: float
    detail: str = "no turn to call Svix in time"


class Pacer:
    """Gives turns to call Svix. `clock` is in seconds; `uniform` draws between two numbers."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._clock, self._uniform = clock, uniform
        self._closing, self._order = asyncio.Event(), itertools.count()
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._next_at = clock()  # no call goes before
        self._rate, self._limited = _FIRST_RATE, False  # limited: the rate on the curve's level
        self._pressed = 0.0  # seconds of sending at the full rate since the cut
        self._accepted, self._counted_from = 0, clock()  # what Svix took since the last refusal
        self._in_flight = self._stale = 0  # stale: sent before the pause, so they tell no news
        self._paused = False  # until a probe is answered
        self._probed_at: float | None = None
        self._pauses = self._failures = 0  # in a row
        self._cause = Outcome.UNAVAILABLE

    @property
    def rate(self) -> float:
        """Calls a second, as of now."""
        curve = self._rate * (1 + _CUT * (self._pressed / _LEVEL_SECONDS - 1) ** 3)
        return curve + _CLIMB * self._pressed if self._limited else self._rate

    def refusal(self, deadline: float) -> TurnedAway | None:
        """Why no turn can come by `deadline`, as far as is known now; None where one can."""
        if self._closing.is_set():
            return TurnedAway(Outcome.UNAVAILABLE, 1.0, "shutting down")
        now = self._clock()
        wait = max(0.0, self._next_at - now)
        wait += len(self._waiting) / self.rate if self._limited else 0.0
        return TurnedAway(self._cause, wait) if now + wait > deadline else None

    async def turn(self, deadline: float, delay: float = 0.0) -> None:
        """Wait for the next call, from `delay` until `deadline`; then one `report` must follow."""
        if delay:
            delay = min(delay * self._uniform(1, 1 + _JITTER), deadline - self._clock())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), delay)
        if self._closing.is_set() or self._clock() >= deadline:
            raise self.refusal(0) or TurnedAway(self._cause, delay)
        if not self._waiting and self._take():
            return
        granted = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (deadline, next(self._order), granted))
        self._arm()
        try:
            await granted
        except asyncio.CancelledError:
            if not granted.cancelled() and granted.exception() is None:
                self.report(Answer(Verdict.UNAVAILABLE))  # a turn that came too late to be used
            raise

    def report(self, answer: Answer) -> None:
        """Learn from what Svix said to a call that had a turn."""
        self._in_flight -= 1
        self._accepted += (healthy := answer.verdict in _HEALTHY)
        if self._stale:
            self._stale -= 1
        elif answer.verdict is Verdict.RATE_LIMITED:
            self._refused(answer.retry_after)
        elif not healthy:
            self._failed()
        elif self._paused:
            self._paused, self._probed_at, self._pauses = False, None, 0
            self._next_at = self._clock()
        elif not self._limited:
            self._rate += math.log(2) / _DOUBLING_SECONDS  # each call taken: used up, it doubles
        self._failures = 0 if healthy else self._failures
        self._serve()

    def close(self) -> None:
        """Turn away all who wait and all who come: the process is about to end."""
        self._closing.set()
        for _, _, granted in self._waiting:
            if not granted.done():
                granted.set_exception(TurnedAway(Outcome.UNAVAILABLE, 1.0, "shutting down"))
        self._waiting.clear()
        self._arm()

    def _refused(self, retry_after: float | None) -> None:
        self._cause = Outcome.RATE_LIMITED
        now = self._clock()
        if not self._paused:
            # Svix's bucket was empty at the last refusal and is again: what it took between is
            # the limit, or our share of it; too little where we were idle between.
            took = self._accepted / max(1.0, now - self._counted_from) if self._limited else 0.0
            lowest = self.rate * (_LOWEST_SHARE if self._limited else 0.5)
            self._rate = min(self.rate, max(took, lowest))
            self._limited, self._pressed = True, 0.0
            self._accepted, self._counted_from = 0, now
        pause = _FIRST_PAUSE * 2**self._pauses if retry_after is None else retry_after
        self._pause(now, min(pause, _LONGEST_REFUSAL_PAUSE))

    def _failed(self) -> None:
        self._failures += 1
        if not self._paused and self._failures < _FAILURES_IN_A_ROW:
            return
        self._cause = Outcome.UNAVAILABLE
        if not self._limited:
            self._rate = min(self._rate, _FIRST_RATE)  # no herd upon one that has just come back
        pause = min(_FIRST_PAUSE * 2**self._pauses, _LONGEST_OUTAGE_PAUSE)
        self._pause(self._probed_at or self._clock(), pause)  # a probe that hung was pause enough

    def _pause(self, since: float, seconds: float) -> None:
        self._next_at = since + seconds * self._uniform(1, 1 + _JITTER)
        self._paused, self._probed_at = True, None
        self._pauses = min(self._pauses + 1, 10)
        self._stale = self._in_flight

    def _take(self) -> bool:
        now = self._clock()
        if self._probed_at is not None or now < self._next_at:
            return False
        if self._paused:
            self._probed_at = now
        else:
            spare = 0.1 if self._limited else 1.0  # seconds of unused turns that may be made up for
            self._next_at = max(self._next_at, now - spare) + 1 / self.rate
        self._in_flight += 1
        return True

    def _serve(self) -> None:
        """Give turns to those who wait, and turn away those whose deadline has come."""
        while self._waiting:
            deadline, _, granted = self._waiting[0]
            if not granted.done():
                if self._clock() >= deadline:
                    granted.set_exception(TurnedAway(self._cause, self._next_at - self._clock()))
                elif self._take():
                    self._pressed += 1 / self.rate
                    granted.set_result(None)
                else:
                    break
            heapq.heappop(self._waiting)
        self._arm()

    def _arm(self) -> None:
        """Set the timer for what comes of itself: the next turn, or the first deadline."""
        if self._timer is not None:
            self._timer.cancel()
        if self._waiting:
            next_turn = self._next_at if self._probed_at is None else math.inf
            until = min(self._waiting[0][0], next_turn)
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, until - self._clock()), self._serve)
