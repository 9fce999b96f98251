"""Spaces nacks, because each nack slows down Pub/Sub's delivery of the whole subscription.

Twenty simultaneous nacks would raise Pub/Sub's push back-off to a minute, for every customer.
"""

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Callable

from relay.pacing import tuning


class Nacks:
    """Spaces an instance's nacks: between two of them, there are two acks and half a second.

    Before the first nack there are two acks, too. At its deadline, a push is nacked in any case.
    The nack of an incomplete body, or of a request that is cancelled at shutdown, does not wait and
    does not count. Times are seconds of `clock`.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._acks = 0
        """Acks since the last nack."""
        self._last = -math.inf
        """The time of the last nack."""
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def acked(self) -> None:
        """A push was acknowledged."""
        self._acks += 1
        self._serve()

    async def acquire(self, until: float) -> bool:
        """Wait until one push may be nacked, or until `until`. Returns whether it may be."""
        permitted = asyncio.get_running_loop().create_future()
        self._waiting.append(permitted)
        self._serve()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(until - self._clock()):
                await permitted
        return not permitted.cancelled()

    async def space(self, deadline: float) -> None:
        """Wait until a push may be nacked. At `deadline` it is nacked in any case."""
        if not await self.acquire(deadline):
            self._nacked()

    def _serve(self) -> None:
        """Permit the first waiting nack if it is due.

        If there were enough acks, but the half second has not passed, set a timer.
        """
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
