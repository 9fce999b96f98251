"""The relay in virtual time: its own delivery and pacer, between models of Pub/Sub and Svix.

Hours pass in seconds, and two runs with the same seed are identical. These are modelled:

    the ledger            a dictionary, 10 ms a call
    Svix                  a token bucket, a latency, and failures
    the instances         each takes as many pushes as it has places; a push goes to any instance
                          with a free place, at random
    the obvious function  calls Svix at once, and has no ledger

Times are seconds of the virtual loop.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from local.push import Arrival
from relay.delivery import Delivery
from relay.envelope import Event, Source
from relay.ledger import (
    LEASE_SECONDS,
    Claim,
    ClaimLost,
    DeadLetter,
    Duplicate,
    InProgress,
    LedgerUnavailable,
    Record,
    key_of,
)
from relay.outcome import Answer, Call, Verdict
from relay.pacing import Pacer
from relay.waits import Waits

BUDGET = 240.0
"""Seconds that a request may take, as `deploy.sh` sets it."""
PLACES = 3200
"""Requests that all instances together may hold, as `deploy.sh` sets it."""
CALL_SECONDS = 10.0
"""A call to Svix is given up after this time."""
LEDGER_SECONDS = 0.01
"""The latency of one call to the ledger: Firestore's, from the same region."""

Uniform = Callable[[float, float], float]


def now() -> float:
    """Virtual seconds since the start."""
    return asyncio.get_running_loop().time()


@dataclass(slots=True)
class Svix:
    """A token bucket and a latency. `goes_wrong` says how a call fails: `500`, `hang` or None."""

    uniform: Uniform
    rate: Callable[[float], float | None] = lambda _: 50.0
    """The calls a second that it allows at a given time; None: any number."""
    burst: float = 50.0
    latency: float = 0.1
    retry_after: float | None = 1.0
    goes_wrong: Callable[[Event, float], str | None] = lambda _event, _at: None
    taken: dict[str, float] = field(default_factory=dict)
    """When each event's message was created, by idempotency key."""
    failed: int = 0
    """Calls that went wrong."""
    calls: list[tuple[float, bool]] = field(default_factory=list)
    """The time of each send that did not go wrong, and whether the limit refused it."""
    allowed: float = 0.0
    """How many calls the limit would have allowed until now, without the burst."""
    _tokens: float = 0.0
    _filled_at: float = 0.0

    def __post_init__(self) -> None:
        self._tokens = self.burst

    async def send(self, event: Event, idempotency_key: str) -> Answer:
        """Create the event's message."""
        wrong = self.goes_wrong(event, now())
        self.failed += wrong is not None
        if wrong == "hang":
            await asyncio.sleep(CALL_SECONDS)
            return Answer(Call.SEND, Verdict.UNAVAILABLE, failure="no answer in 10 s")
        await asyncio.sleep(self.latency / 2 * self.uniform(0.8, 1.2))
        answer = self._answer(idempotency_key, wrong)
        await asyncio.sleep(self.latency / 2 * self.uniform(0.8, 1.2))
        return answer

    async def find(self, event: Event) -> Answer:
        """Ask for the event's message."""
        await asyncio.sleep(self.latency)
        found = key_of(event.project, event.id) in self.taken
        return Answer(Call.ASK, Verdict.ACCEPTED if found else Verdict.MISSING)

    def _answer(self, key: str, wrong: str | None) -> Answer:
        self._fill()
        is_refused = self._tokens < 1
        if not is_refused:
            self._tokens -= 1
        if wrong:
            return Answer(Call.SEND, Verdict.UNAVAILABLE, status=500)
        self.calls.append((now(), is_refused))
        if is_refused:
            return Answer(Call.SEND, Verdict.RATE_LIMITED, status=429, retry_after=self.retry_after)
        self.taken.setdefault(key, now())
        return Answer(Call.SEND, Verdict.ACCEPTED, status=202, message_id="msg")

    def _fill(self) -> None:
        rate = self.rate(now())
        if rate is None:
            self._tokens = self.burst
        else:
            filled = (now() - self._filled_at) * rate
            self.allowed += filled
            self._tokens = min(self.burst, self._tokens + filled)
        self._filled_at = now()


@dataclass(slots=True)
class _Row:
    """An event's record."""

    state: str
    version: int
    attempts: int
    first_claimed_at: float
    touched_at: float


@dataclass(slots=True)
class Ledger:
    """An instance's access to the records, which all instances share.

    If `is_cut_off`, the instance was killed and reaches no record.
    """

    rows: dict[str, _Row]
    is_cut_off: bool = False

    async def record(self, key: str) -> Record | None:  # noqa: ARG002 - the Protocol has it
        """Find no record: reads are not modelled, except for the time that they take."""
        await self._reach()
        return None

    async def claim(
        self, event: Event, *, previous: Claim | None = None
    ) -> Claim | Duplicate | InProgress:
        """Claim the event, unless it was delivered or another claim's lease has not ended."""
        await self._reach()
        key = key_of(event.project, event.id)
        row = self.rows.setdefault(key, _Row("released", 0, 0, now(), now()))
        if row.state == "delivered":
            return Duplicate("msg", payload_changed=False, attempts=row.attempts)
        remaining = LEASE_SECONDS - (now() - row.touched_at)
        is_ours = previous is not None and previous.version == row.version
        if row.state == "claimed" and remaining > 0 and not is_ours:
            return InProgress(remaining, row.attempts)
        row.attempts += 1
        version = self._write(row, "claimed")
        age = now() - row.first_claimed_at
        return Claim(key, str(version), version, row.attempts, age)

    async def complete(
        self,
        claim: Claim,
        svix_message_id: str | None,  # noqa: ARG002 - the Protocol has it
        *,
        fanout_confirmed: bool,  # noqa: ARG002 - the Protocol has it
    ) -> None:
        """Record that the event is delivered."""
        await self._settle(claim, "delivered")

    async def release(self, claim: Claim) -> Claim:
        """Release the claim, and return it in its new version."""
        version = await self._settle(claim, "released")
        return Claim(claim.key, claim.token, version, claim.attempts, claim.age)

    async def park(self, letter: DeadLetter) -> None:
        """Fail, because no event of the model is refused for good."""
        raise AssertionError(letter)

    async def close(self) -> None:
        """Do nothing, because nothing is open."""

    async def _settle(self, claim: Claim, state: str) -> int:
        await self._reach()
        row = self.rows[claim.key]
        if row.version != claim.version:
            raise ClaimLost
        return self._write(row, state)

    async def _reach(self) -> None:
        if not self.is_cut_off:
            await asyncio.sleep(LEDGER_SECONDS)
        if self.is_cut_off:
            raise LedgerUnavailable("its instance was killed")

    def _write(self, row: _Row, state: str) -> int:
        row.state, row.touched_at = state, now()
        row.version += 1
        return row.version


class Function(Protocol):
    """A function to which Pub/Sub pushes."""

    async def deliver(self, message: int) -> bool:
        """Push a message. Returns whether the push was acknowledged."""


class Instance:
    """One instance of the relay, and the pushes that it holds."""

    def __init__(self, svix: Svix, rows: dict[str, _Row], places: int, budget: float) -> None:
        self.ledger = Ledger(rows)
        self.pacer = Pacer(now, svix.uniform)
        self.places = places
        self.running: set[asyncio.Task[bool]] = set()
        self._delivery = Delivery(
            ledger=self.ledger,
            sender=svix,
            pacer=self.pacer,
            waits=Waits(now, asyncio.sleep, svix.uniform),
        )
        self._budget = budget

    async def handle(self, event: Event) -> bool:
        """Handle one push. Returns whether it was acknowledged."""
        arrived_at = now()
        result = await self._delivery.deliver(event, arrived_at, arrived_at + self._budget)
        if result.acknowledges:
            self.pacer.nacks.acked()
        return result.acknowledges

    def kill(self) -> None:
        """Stop as on SIGKILL: write nothing any more, and answer no push."""
        self.ledger.is_cut_off = True
        for task in self.running:
            task.cancel()


class Relay:
    """All instances of the relay. A push goes to one with a free place, at random."""

    def __init__(
        self,
        svix: Svix,
        uniform: Uniform,
        *,
        instances: int = 1,
        places: int = PLACES,
        budget: float = BUDGET,
        project_of: Callable[[int], str] = lambda _: "acme",
    ) -> None:
        self._svix, self._uniform = svix, uniform
        self._project_of = project_of
        self._places, self._budget = places // instances, budget
        self._rows: dict[str, _Row] = {}
        self.instances: list[Instance] = []
        for _ in range(instances):
            self.start()

    def start(self) -> None:
        """Start another instance."""
        instance = Instance(self._svix, self._rows, self._places, self._budget)
        self.instances.append(instance)

    def kill(self) -> None:
        """Kill one instance. Its pushes are nacked, because their connections break."""
        self.instances.pop(0).kill()

    async def deliver(self, message: int) -> bool:
        """Push a message. Returns whether the push was acknowledged.

        If no instance has a free place, Google answers 429, which is a nack.
        """
        free = [each for each in self.instances if len(each.running) < each.places]
        if not free:
            return False
        instance = free[int(self._uniform(0, len(free) - 1e-9))]
        task = asyncio.create_task(instance.handle(event_of(message, self._project_of(message))))
        instance.running.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if instance.ledger.is_cut_off:
                return False
            task.cancel()
            raise
        finally:
            instance.running.discard(task)

    @property
    def rates(self) -> list[float | None]:
        """The rate that each instance has found."""
        return [each.pacer.state().rate for each in self.instances]

    @property
    def waiting(self) -> int:
        """The number of requests that wait for a turn."""
        return sum(each.pacer.state().waiting for each in self.instances)


@dataclass(slots=True)
class Obvious:
    """The obvious function: it calls Svix at once through the SDK, and passes refusals on.

    The SDK waits 15 s for an answer, and repeats a call three times after a 5xx or a timeout.
    """

    svix: Svix
    project_of: Callable[[int], str] = lambda _: "acme"
    waiting: int = 0

    async def deliver(self, message: int) -> bool:
        """Push a message. Returns whether the push was acknowledged."""
        event = event_of(message, self.project_of(message))
        for pause in (0.05, 0.1, 0.2, 0.0):
            answer = await self.svix.send(event, event.id)
            if answer.failure:
                await asyncio.sleep(15.0 - CALL_SECONDS)
            if answer.verdict is not Verdict.UNAVAILABLE:
                break
            await asyncio.sleep(pause)
        return answer.verdict is Verdict.ACCEPTED


def event_of(message: int, project: str) -> Event:
    """The event of a message, as the relay reads it from a push."""
    source = Source(pushed=True, message_id=str(message))
    return Event(str(message), "user.created", project, b"{}", (), "", source)


def backlog(events: int) -> list[Arrival]:
    """Events that were all published before the start."""
    return [Arrival(0.0, number) for number in range(events)]


def steady(a_second: float, seconds: float, first: int = 0) -> list[Arrival]:
    """Events that are published at a steady rate."""
    count = int(a_second * seconds)
    return [Arrival(number / a_second, first + number) for number in range(count)]
