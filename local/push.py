"""A Pub/Sub push subscription, as far as it decides who is delivered when: a simulator.

Google's words, from https://cloud.google.com/pubsub/docs/push: the window of outstanding messages
starts small and grows with acks, shrinks on nacks, and is at most 3,000 ("slow start"); nacks
delay all of the subscription's deliveries by 100 ms to 60 s ("push backoff"); besides, the retry
policy delays each nacked message, here by 10 s to 600 s. The formulas are this model's own: the
window is 3 at first, one more for each ack and half for each nack; the pause, from the last nack,
doubles with each nack and halves with each ack; a message waits 10 s, doubled with each nack.

Knows no HTTP and no clock but the running loop's: `deliver` may be either.
"""

import asyncio
import heapq
import itertools
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

_FIRST_WINDOW, _LARGEST_WINDOW = 3.0, 3000.0
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.1, 60.0  # seconds, of the subscription
_FIRST_RETRY, _LAST_RETRY = 10.0, 600.0  # seconds, of a message


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message that is published `at` seconds after the start."""

    at: float
    message: int


@dataclass(slots=True)
class Subscription:
    """Pushes messages until all are acked; `deliver` says whether one was."""

    deliver: Callable[[int], Awaitable[bool]]
    acked: dict[int, float] = field(default_factory=dict)
    """When each was, in seconds from the start."""
    nacked: list[tuple[float, int]] = field(default_factory=list)
    """Each nack: when, and of which message."""
    _window: float = _FIRST_WINDOW
    _pause: float = 0.0
    _last_nack: float = 0.0
    _outstanding: int = 0
    _messages: int = 0
    _nacks: dict[int, int] = field(default_factory=dict)
    _due: list[tuple[float, int, int]] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        """Whether everything was acked."""
        return len(self.acked) == self._messages

    async def run(self, arrivals: list[Arrival], limit: float | None = None) -> None:
        """Push everything; give up after `limit` seconds, leaving what is outstanding."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        order = itertools.count()
        self._due = [(arrival.at, next(order), arrival.message) for arrival in arrivals]
        heapq.heapify(self._due)
        self._messages = len(arrivals)
        wake = asyncio.Event()

        async def push(message: int) -> None:
            try:
                is_acked = await self.deliver(message)
            finally:
                self._outstanding -= 1
            now = loop.time() - started
            if is_acked:
                self._ack(message, now)
            else:
                heapq.heappush(self._due, (self._nack(message, now), next(order), message))
            wake.set()

        try:
            async with asyncio.timeout(limit), asyncio.TaskGroup() as pushes:
                while not self.is_done:
                    wake.clear()
                    now = loop.time() - started
                    while self._may_push(now):
                        _, _, message = heapq.heappop(self._due)
                        self._outstanding += 1
                        pushes.create_task(push(message))
                    until = self._next(now)
                    try:
                        async with asyncio.timeout(None if until is None else until - now):
                            await wake.wait()
                    except TimeoutError:
                        pass  # something is due
        except TimeoutError:
            pass  # given up, as agreed

    def _may_push(self, now: float) -> bool:
        is_due = bool(self._due) and self._due[0][0] <= now
        return (
            is_due
            and now >= self._last_nack + self._pause
            and self._outstanding < int(self._window)
        )

    def _next(self, now: float) -> float | None:
        """When something may be pushed although nothing is answered."""
        if not self._due or self._outstanding >= int(self._window):
            return None
        return max(self._due[0][0], self._last_nack + self._pause, now)

    def _ack(self, message: int, now: float) -> None:
        self.acked[message] = now
        self._window = min(self._window + 1, _LARGEST_WINDOW)
        self._pause = self._pause / 2 if self._pause > _SHORTEST_PAUSE else 0.0

    def _nack(self, message: int, now: float) -> float:
        """When the message is due again."""
        self.nacked.append((now, message))
        self._window = max(self._window / 2, 1.0)
        self._pause = min(max(2 * self._pause, _SHORTEST_PAUSE), _LONGEST_PAUSE)
        self._last_nack = now
        nacks = self._nacks[message] = self._nacks.get(message, 0) + 1
        return now + min(math.ldexp(_FIRST_RETRY, nacks - 1), _LAST_RETRY)
