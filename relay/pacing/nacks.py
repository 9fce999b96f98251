"""Nacks, spaced: Pub/Sub charges each one to the whole subscription.

Twenty at once would drive its push back-off to a minute, which every customer waits out.
"""

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Callable

from relay.pacing import tuning


class Nacks:
    """Says when the instance may nack a push: after two acks and half a second since its last."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._acks = 0
        """Acks since the last nack."""
        self._last = -math.inf
        """When the last nack was, on the clock."""
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def acked(self) -> None:
        """A push was acknowledged."""
        self._acks += 1
        self._serve()

    async def wait(self, until: float) -> bool:
        """Wait for a nack until this time of the clock; whether one is ours."""
        ours = asyncio.get_running_loop().create_future()
        self._waiting.append(ours)
        self._serve()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(until - self._clock()):
                await ours
        return not ours.cancelled()

    async def space(self, deadline: float) -> None:
        """Wait until a push may be nacked, or for its deadline: then it is nacked all the same."""
        if not await self.wait(deadline):
            self._nacked()

    def _serve(self) -> None:
        """Let the first of those who wait nack, if one may; or look again when one may."""
        while self._waiting and self._waiting[0].done():
            self._waiting.popleft()
        if not self._waiting or self._acks < tuning.ACKS_BETWEEN_NACKS:
            return
        remaining = self._last + tuning.BETWEEN_NACKS - self._clock()
        if remaining <= 0:
            self._waiting.popleft().set_result(None)
            self._nacked()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(remaining, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self._serve()

    def _nacked(self) -> None:
        self._acks, self._last = 0, self._clock()
