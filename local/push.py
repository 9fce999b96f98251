"""A simulator of a Pub/Sub push subscription, as far as it decides who is delivered when.

Google's words, from https://cloud.google.com/pubsub/docs/push: the window of outstanding messages
starts small and grows with acks, shrinks on nacks, and is at most 3,000 ("slow start"); nacks
delay all of the subscription's deliveries by 100 ms to 60 s ("push backoff"); besides, the retry
policy delays each nacked message, here by 10 s to 600 s. The formulas are this model's own: the
window is 3 at first, one more for each ack and half for each nack; the pause, from the last nack,
doubles with each nack and halves with each ack; a message waits 10 s, doubled with each nack.

Google also says, on the same page: "If the average latency exceeds one second or the acknowledgment
rate is less than 99%, the window decreases to the lower limit of 3,000 outstanding messages". That
is the second mode, `Policy(floor=3000)`: nacks shrink no window below it, so that a subscriber that
makes pushes wait keeps all 3,000. Which of the two Google does at which moment is not published.

Knows no HTTP and no clock but the running loop's: `deliver` may be either.
"""

import asyncio
import heapq
import itertools
import math
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

_LARGEST_WINDOW = 3000.0
_SHORTEST_PAUSE = 0.1  # seconds, of the subscription


@dataclass(frozen=True, slots=True)
class Policy:
    """What a subscription may be set to. Times are in seconds; the defaults are Google's."""

    floor: float = 1.0
    """The window that nacks leave at the least, once it is so large."""
    first_window: float = 3.0
    """The window at the start (slow start); 3,000 for a subscription that was busy before."""
    longest_pause: float = 60.0
    """The most that nacks delay the whole subscription by (push back-off; Google sets it)."""
    first_retry: float = 10.0
    """How long a message waits after its first nack (retry policy, minimum)."""
    last_retry: float = 600.0
    """And at most (retry policy, maximum)."""
    dead_letter_after: int | None = None
    """The nacks after which a message goes to the dead-letter topic; None: there is no such."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message that is published `at` seconds after the start."""

    at: float
    message: int


@dataclass(slots=True)
class Subscription:
    """Pushes each message until it is acked; `deliver` says whether one was.

    Times are in seconds from the start of `run`.
    """

    deliver: Callable[[int], Awaitable[bool]]
    policy: Policy = Policy()
    acked: dict[int, float] = field(default_factory=dict)
    """When each was."""
    nacked: list[tuple[float, int]] = field(default_factory=list)
    """Each nack: when, and of which message."""
    dead_lettered: dict[int, float] = field(default_factory=dict)
    """When each message was moved to the dead-letter topic."""
    outstanding: int = 0
    """Messages that are pushed and not answered yet."""
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
        self._window = self.policy.first_window

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
        """When the pause that the nacks caused is over."""
        return self._last_nack + self._pause

    @property
    def pause_remaining(self) -> float:
        """How long nothing will be pushed because of nacks, in seconds."""
        return max(0.0, self.pushable_at - (asyncio.get_running_loop().time() - self._started))

    def publish(self, message: int, at: float = 0.0) -> None:
        """Add a message that is due at once, or `at` seconds after the start."""
        self._messages += 1
        heapq.heappush(self._due, (at, next(self._order), message))
        self._wake.set()

    async def run(
        self, arrivals: list[Arrival], limit: float | None = None, *, until_done: bool = True
    ) -> None:
        """Push everything; give up after `limit` seconds, leaving what is outstanding.

        Without `until_done` it goes on until it is cancelled: more may be published.
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
                        pass  # something is due
        except TimeoutError:
            pass  # given up, as agreed

    def _may_push(self, now: float) -> bool:
        is_due = bool(self._due) and self._due[0][0] <= now
        return is_due and now >= self.pushable_at and self.outstanding < self.window

    def _next(self, now: float) -> float | None:
        """When something may be pushed although nothing is answered."""
        if not self._due or self.outstanding >= self.window:
            return None
        return max(self._due[0][0], self.pushable_at, now)

    def _ack(self, message: int, now: float) -> None:
        self.acked[message] = now
        self._window = min(self._window + 1, _LARGEST_WINDOW)
        self._pause = self._pause / 2 if self._pause > _SHORTEST_PAUSE else 0.0

    def _nack(self, message: int, now: float) -> None:
        """Slow down, and put the message back for later or into the dead-letter topic."""
        policy = self.policy
        self.nacked.append((now, message))
        self._window = max(self._window / 2, min(self._window, policy.floor))
        self._pause = min(max(2 * self._pause, _SHORTEST_PAUSE), policy.longest_pause)
        self._last_nack = now
        nacks = self._nacks[message] = self._nacks.get(message, 0) + 1
        if policy.dead_letter_after is not None and nacks >= policy.dead_letter_after:
            self.dead_lettered[message] = now
            return
        wait = min(math.ldexp(policy.first_retry, nacks - 1), policy.last_retry)
        heapq.heappush(self._due, (now + wait, next(self._order), message))
