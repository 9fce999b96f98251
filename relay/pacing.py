"""When the next call to Svix may go. (A first version without pacing: turns are always given.)"""

import asyncio
import time
from collections.abc import Callable

from relay.outcome import Answer, Outcome


class TurnedAway(Exception):
    """No turn by the deadline."""

    def __init__(self, outcome: Outcome, retry_after: float, detail: str) -> None:
        super().__init__(detail)
        self.outcome = outcome
        self.retry_after = retry_after
        self.detail = detail


class Pacer:
    """Gives turns."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._closed = False

    def refusal(self, deadline: float) -> TurnedAway | None:
        """Whether a turn can come by `deadline`."""
        if self._closed or self._clock() > deadline:
            return TurnedAway(Outcome.UNAVAILABLE, 1.0, "shutting down")
        return None

    async def turn(self, deadline: float, delay: float = 0.0) -> None:
        """Wait for a turn."""
        if refusal := self.refusal(deadline - delay):
            raise refusal
        if delay:
            await asyncio.sleep(delay)

    def report(self, answer: Answer) -> None:
        """Take note of an answer."""

    def close(self) -> None:
        """Turn everyone away."""
        self._closed = True
