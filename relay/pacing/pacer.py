"""Gives turns to call Svix: runs the rate, the pauses and the lines on a clock and an event loop.

    async with pacer.turn(waiter) as turn:  # waits; raises NoTurn if none comes in time
        ...                                 # claim the event
        turn.begin()                        # the call to Svix begins
        turn.report(answer)                 # Svix has answered

Times are seconds of the pacer's clock.
"""

import asyncio
import contextlib
import math
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from relay.outcome import Outcome
from relay.pacing.lines import Lines, Waiter
from relay.pacing.nacks import Nacks
from relay.pacing.traffic import Traffic
from relay.pacing.turn import Turn


@dataclass(eq=False)
class NoTurn(Exception):
    """No turn came in time."""

    outcome: Outcome
    """What delayed the turn. During a pause: RATE_LIMITED if Svix refuses calls, LEDGER_UNAVAILABLE
    if claims fail, UNAVAILABLE if calls to Svix fail. Without a pause: RATE_LIMITED if Svix has
    refused a call before, else UNAVAILABLE."""
    retry_after: float
    """Seconds until a turn may come."""
    detail: str
    """The reason, in words for people."""


@dataclass(frozen=True, slots=True)
class PacerState:
    """The pacer's figures at one moment."""

    waiting: int
    in_flight: int
    """Turns that are given and not over."""
    rate: float | None
    """Calls a second; None: no refusal has set a rate yet."""
    paused: bool
    """Whether a pause for all projects is on."""
    taken: int
    """Sends that Svix has processed since the start."""
    refused: int
    """Calls that Svix has answered with 429 since the start."""
    failed: int
    """Calls that have failed since the start."""


class Pacer:
    """Gives turns to call Svix.

    `clock` gives seconds. `uniform` draws a random number between two numbers.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.nacks = Nacks(clock)
        self._clock = clock
        self._traffic = Traffic(uniform)
        self._lines = Lines()
        self._granted: dict[Waiter, asyncio.Future[Turn]] = {}
        """Each waiter's future, whose result is the turn."""
        self._timer: asyncio.TimerHandle | None = None
        """Fires when the next turn or a project's next probe is due."""

    def state(self) -> PacerState:
        """The figures now."""
        traffic = self._traffic
        return PacerState(
            waiting=len(self._lines),
            in_flight=traffic.in_flight,
            rate=traffic.rate.current,
            paused=traffic.pauses.is_on,
            taken=traffic.taken,
            refused=traffic.refused,
            failed=traffic.failed,
        )

    def serves_others_since(self, project: str, since: float) -> bool:
        """Whether few of the last calls failed, and another project's send was processed since."""
        return self._traffic.serves_others_since(project, since)

    def must_wait(self, waiter: Waiter) -> bool:
        """Whether `turn` would have to wait."""
        now = self._clock()
        is_held = self._traffic.pauses.holds(waiter.project, now)
        is_next = not is_held and self._lines.next_project(lambda _: False) is None
        return not is_next or now < self._traffic.next_turn_at(waiter.project)

    @contextlib.asynccontextmanager
    async def turn(self, waiter: Waiter) -> AsyncIterator[Turn]:
        """Wait for a turn at the waiter's place in line. Raises `NoTurn` if none comes in time."""
        turn = await self._wait(waiter)
        try:
            yield turn
        except BaseException:
            turn.leave(claimed=False)
            raise
        turn.leave(claimed=True)

    async def _wait(self, waiter: Waiter) -> Turn:
        remaining = waiter.last_turn - self._clock()
        if remaining <= 0:
            raise self._no_turn(waiter)
        granted: asyncio.Future[Turn] = asyncio.get_running_loop().create_future()
        self._granted[waiter] = granted
        self._lines.join(waiter)
        self._serve(waited=False)
        if granted.done():
            return granted.result()
        try:
            async with asyncio.timeout(remaining):
                return await granted
        except BaseException as failure:
            if waiter in self._granted:
                del self._granted[waiter]
                self._lines.leave(waiter)
            elif not granted.cancelled():
                # The turn came at the same moment as the timeout or the cancellation.
                granted.result().leave(claimed=False)
            if isinstance(failure, TimeoutError):
                raise self._no_turn(waiter) from None
            raise

    def _no_turn(self, waiter: Waiter) -> NoTurn:
        outcome, until, detail = self._traffic.reason(waiter.project)
        return NoTurn(outcome, max(0.0, until - self._clock()), detail)

    def _serve(self, *, waited: bool = True) -> None:
        """Give all turns that may be given now.

        `waited` is False if `_serve` is called for a request that has just joined its line.
        """
        traffic, lines, now = self._traffic, self._lines, self._clock()
        while True:
            for changed, is_held in traffic.pauses.changes(now):
                (lines.hold if is_held else lines.release)(changed)
            project = lines.next_project(traffic.avoids)
            next_turn_at = math.inf if project is None else traffic.next_turn_at(project)
            if project is None or now < next_turn_at:
                break
            waiter = lines.take(project, traffic.pauses.passed_over(project))
            granted = self._granted.pop(waiter)
            if not granted.cancelled():
                given = traffic.give(project, waiter.event, now, waited=waited)
                granted.set_result(Turn(given, traffic, self._clock, self._serve))
        self._serve_again(min(next_turn_at, traffic.pauses.next_change_at) - now)

    def _serve_again(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds < math.inf:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, seconds), self._serve)
