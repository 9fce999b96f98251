"""Spaces nacks, because each nack slows down Pub/Sub's delivery of the whole subscription.

Twenty nacks at once would raise Pub/Sub's push back-off to a minute, for every customer.
"""

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Callable

from relay.pacing import tuning


class Nacks:
    """Decides when the instance may nack a push: after two acks and half a second since the last.

    Times are seconds of `clock`.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._acks = 0
        """Acks since the last nack."""
        self._last = -math.inf
        """When the last nack was."""
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def acked(self) -> None:
        """A push was acknowledged."""
        self._acks += 1
        self._serve()

    async def acquire(self, until: float) -> bool:
        """Wait for permission to nack one push, at most until `until`. Returns whether it came."""
        permitted = asyncio.get_running_loop().create_future()
        self._waiting.append(permitted)
        self._serve()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(until - self._clock()):
                await permitted
        return not permitted.cancelled()

    async def space(self, deadline: float) -> None:
        """Wait for permission to nack a push; at `deadline` it is nacked without permission."""
        if not await self.acquire(deadline):
            self._nacked()

    def _serve(self) -> None:
        """Permit the first waiting nack if it is time; otherwise set a timer for that time."""
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
