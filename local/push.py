"""A simulator of a Pub/Sub push subscription: it decides when each message is pushed.

Google documents this at https://cloud.google.com/pubsub/docs/push. The window of outstanding
messages starts small, grows with acks, shrinks on nacks, and is at most 3,000 ("slow start"). Nacks
delay all of the subscription's deliveries by 100 ms to 60 s ("push backoff"). The retry policy also
delays each nacked message, here by 10 s to 600 s.

Google publishes no formulas, so this model has its own. The window begins at 3, grows by one with
each ack and halves with each nack. The pause begins at the last nack; it doubles with each nack and
halves with each ack. A message waits 10 s after its first nack, and twice as long after each
further one.

The same page also says: "If the average latency exceeds one second or the acknowledgment rate is
less than 99%, the window decreases to the lower limit of 3,000 outstanding messages". The second
mode, `Policy(min_window=3000)`, models that: nacks do not shrink the window below 3,000, so a
subscriber that makes pushes wait keeps all 3,000. Google does not publish which of the two applies
when.

This module knows no HTTP: `deliver` makes the pushes. Its only clock is the running loop's.
"""

import asyncio
import heapq
import itertools
import math
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

_MAX_WINDOW = 3000.0
_MIN_PAUSE = 0.1  # seconds, of the subscription


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings of a subscription. Times are in seconds; the defaults are Google's."""

    min_window: float = 1.0
    """Nacks never shrink the window below this. The window may start smaller."""
    initial_window: float = 3.0
    """The window at the start (slow start); 3,000 for a subscription that was busy before."""
    max_pause: float = 60.0
    """The longest delay of the whole subscription after nacks (push back-off; set by Google)."""
    min_retry_delay: float = 10.0
    """How long a message waits after its first nack (retry policy, minimum)."""
    max_retry_delay: float = 600.0
    """The longest that a message waits after a nack (retry policy, maximum)."""
    dead_letter_after: int | None = None
    """After this many nacks a message goes to the dead-letter topic; None: there is no topic."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message that is published `at` seconds after the start."""

    at: float
    message: int


@dataclass(slots=True)
class Subscription:
    """Pushes each message until it is acked.

    `deliver` makes one push and returns whether the push was acked. Times are in seconds from the
    start of `run`.
    """

    deliver: Callable[[int], Awaitable[bool]]
    policy: Policy = Policy()
    acked: dict[int, float] = field(default_factory=dict)
    """When each message was acked."""
    nacked: list[tuple[float, int]] = field(default_factory=list)
    """The time and the message of each nack."""
    dead_lettered: dict[int, float] = field(default_factory=dict)
    """When each message was moved to the dead-letter topic."""
    outstanding: int = 0
    """Pushes that are not answered yet."""
    _window: float = field(init=False)
    _pause: float = 0.0
    _started: float = 0.0
    _last_nack: float = 0.0
    _messages: int = 0
    _nacks: dict[int, int] = field(default_factory=dict)
    _due: list[tuple[float, int, int]] = field(default_factory=list)
    _order: Iterator[int] = field(default_factory=itertools.count)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._window = self.policy.initial_window

    @property
    def is_done(self) -> bool:
        """Whether everything that was published is acked, or is a dead letter."""
        return len(self.acked) + len(self.dead_lettered) == self._messages

    @property
    def backlog(self) -> int:
        """Messages that wait to be pushed, for the first time or again."""
        return len(self._due)

    @property
    def window(self) -> int:
        """How many messages may be outstanding."""
        return int(self._window)

    @property
    def pushable_at(self) -> float:
        """When the pause after the last nack ends."""
        return self._last_nack + self._pause

    @property
    def pause_remaining(self) -> float:
        """How long nothing will be pushed because of nacks, in seconds."""
        return max(0.0, self.pushable_at - (asyncio.get_running_loop().time() - self._started))

    def publish(self, message: int, at: float = 0.0) -> None:
        """Add a message. It may be pushed from `at` seconds after the start on."""
        self._messages += 1
        heapq.heappush(self._due, (at, next(self._order), message))
        self._wake.set()

    async def run(
        self, arrivals: list[Arrival], limit: float | None = None, *, until_done: bool = True
    ) -> None:
        """Push everything, for at most `limit` seconds. Then outstanding pushes are cancelled.

        Without `until_done` it runs until it is cancelled, because more may be published.
        """
        for arrival in arrivals:
            self.publish(arrival.message, arrival.at)
        loop = asyncio.get_running_loop()
        self._started = loop.time()

        async def push(message: int) -> None:
            try:
                is_acked = await self.deliver(message)
            finally:
                self.outstanding -= 1
            now = loop.time() - self._started
            if is_acked:
                self._ack(message, now)
            else:
                self._nack(message, now)
            self._wake.set()

        try:
            async with asyncio.timeout(limit), asyncio.TaskGroup() as pushes:
                while not (until_done and self.is_done):
                    self._wake.clear()
                    now = loop.time() - self._started
                    while self._may_push(now):
                        _, _, message = heapq.heappop(self._due)
                        self.outstanding += 1
                        pushes.create_task(push(message))
                    until = self._next(now)
                    try:
                        async with asyncio.timeout(None if until is None else until - now):
                            await self._wake.wait()
                    except TimeoutError:
                        pass  # the next message may be pushed now
        except TimeoutError:
            pass  # `limit` is over

    def _may_push(self, now: float) -> bool:
        is_due = bool(self._due) and self._due[0][0] <= now
        return is_due and now >= self.pushable_at and self.outstanding < self.window

    def _next(self, now: float) -> float | None:
        """When the next push may be made if none is answered until then; None: not at all."""
        if not self._due or self.outstanding >= self.window:
            return None
        return max(self._due[0][0], self.pushable_at, now)

    def _ack(self, message: int, now: float) -> None:
        self.acked[message] = now
        self._window = min(self._window + 1, _MAX_WINDOW)
        self._pause = self._pause / 2 if self._pause > _MIN_PAUSE else 0.0

    def _nack(self, message: int, now: float) -> None:
        """Slow down, and put the message back for later or into the dead-letter topic."""
        policy = self.policy
        self.nacked.append((now, message))
        self._window = max(self._window / 2, min(self._window, policy.min_window))
        self._pause = min(max(2 * self._pause, _MIN_PAUSE), policy.max_pause)
        self._last_nack = now
        nacks = self._nacks[message] = self._nacks.get(message, 0) + 1
        if policy.dead_letter_after is not None and nacks >= policy.dead_letter_after:
            self.dead_lettered[message] = now
            return
        wait = min(math.ldexp(policy.min_retry_delay, nacks - 1), policy.max_retry_delay)
        heapq.heappush(self._due, (now + wait, next(self._order), message))
