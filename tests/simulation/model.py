"""The world around `relay/delivery.py`, small enough to try everything that can happen in it.

A model of the ledger and of Svix, each call one step, and what may go wrong in each. Times are
seconds. Svix forgets an idempotency key after 12 h and an event id after 24 h, but not a message.
"""

import types
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Literal

from relay.envelope import Event
from relay.ledger import Claim, ClaimLost, DeadLetter, Duplicate, InProgress, LedgerUnavailable
from relay.outcome import Answer, Outcome, Verdict
from relay.pacing import Pacer, TurnedAway

LEASE = 90.0
KEY_LIFETIME = 12 * 3600.0
EVENT_ID_LIFETIME = 24 * 3600.0
TURNS = 3  # that a delivery gets before its budget is used up

OK = Answer(Verdict.ACCEPTED, 202, message_id="msg")
CONFLICT = Answer(Verdict.CONFLICT, 409, code="conflict")
MISSING = Answer(Verdict.NOT_FOUND, 404, code="not_found")

# What a call to Svix may be answered instead of what it should be; `lost` after acceptance.
SEND_FAULTS: dict[str, Answer] = {
    "lost": Answer(Verdict.UNAVAILABLE),
    "500": Answer(Verdict.UNAVAILABLE, 500),
    "429": Answer(Verdict.RATE_LIMITED, 429),
    "race": CONFLICT,
    "404": MISSING,
    "401": Answer(Verdict.MISCONFIGURED, 401),
    "422": Answer(Verdict.REJECTED, 422),
}
FIND_FAULTS = {name: SEND_FAULTS[name] for name in ("500", "429", "401")}


@dataclass(frozen=True, slots=True)
class Op:
    """One call that a delivery waits for."""

    name: Literal["claim", "complete", "release", "park", "turn", "send", "find"]
    event: str
    argument: Any = None

    @property
    def writes(self) -> bool:
        """Whether the ledger may have done it although it did not say so."""
        return self.name in {"claim", "complete", "release", "park"}

    @property
    def faults(self) -> tuple[str, ...]:
        """All that may go wrong with it."""
        crashes = ("crash before", "crash after", "cancelled")
        if self.writes:
            return (*crashes, "fails", "times out but lands", "lands later")
        if self.name == "turn":
            return (*crashes, "turned away")
        return (*crashes, *(SEND_FAULTS if self.name == "send" else FIND_FAULTS))


@types.coroutine
def call(op: Op) -> Generator[Op, Any, Any]:
    """Hand an operation to the scheduler and wait for what it makes of it."""
    return (yield op)


@dataclass(frozen=True, slots=True)
class Row:
    """An event's record."""

    state: str
    token: str
    version: int
    attempts: int
    first_claimed_at: float
    updated_at: float


@dataclass(slots=True)
class World:
    """All that outlives a worker, and the clock."""

    now: float = 0.0
    rows: dict[str, Row] = field(default_factory=dict)
    parked: set[str] = field(default_factory=set)
    messages: list[tuple[str, float]] = field(default_factory=list)
    """What Svix has taken: the event and when."""
    tokens: int = 0

    def state(self) -> tuple[object, ...]:
        """What two worlds must share to go on alike."""
        rows = tuple(sorted((event, row) for event, row in self.rows.items()))
        shown = tuple((event, repr(row)) for event, row in rows)
        return (self.now, shown, tuple(sorted(self.parked)), tuple(self.messages))

    def perform(self, op: Op) -> Any:
        """Do what the operation asks; returns its result or raises."""
        return getattr(self, f"_{op.name}")(op)

    def _claim(self, op: Op) -> Claim | Duplicate | InProgress:
        token: str = op.argument
        row = self.rows.get(op.event)
        if row is None:
            row = Row("claimed", token, 1, 1, self.now, self.now)
        elif row.state == "delivered":
            return Duplicate("msg", payload_changed=False, attempts=row.attempts)
        elif row.state == "claimed" and self.now - row.updated_at < LEASE:
            return InProgress(timedelta(seconds=LEASE), row.attempts)
        else:
            row = replace(
                row,
                state="claimed",
                token=token,
                version=row.version + 1,
                attempts=row.attempts + 1,
                updated_at=self.now,
            )
        self.rows[op.event] = row
        age = timedelta(seconds=self.now - row.first_claimed_at)
        return Claim(op.event, token, row.version, row.attempts, age)

    def _complete(self, op: Op) -> None:
        self._settle(op, "delivered")

    def _release(self, op: Op) -> None:
        self._settle(op, "released")

    def _settle(self, op: Op, state: str) -> None:
        claim: Claim = op.argument
        row = self.rows[op.event]
        if not self.may_settle(row, claim):
            if (row.token, row.state) == (claim.token, state):
                return  # a repeated write of ours that had landed
            raise ClaimLost
        self.rows[op.event] = replace(
            row, state=state, version=row.version + 1, updated_at=self.now
        )

    def may_settle(self, row: Row, claim: Claim) -> bool:
        """Fencing: the record is as our own claim left it."""
        return row.version == claim.version

    def _park(self, op: Op) -> None:
        self.parked.add(op.event)

    def _turn(self, _op: Op) -> None:
        pass

    def _send(self, op: Op) -> Answer:
        sent = [at for event, at in self.messages if event == op.event]
        if any(self.now - at < KEY_LIFETIME for at in sent):
            return OK  # replayed: the same idempotency key
        if any(self.now - at < EVENT_ID_LIFETIME for at in sent):
            return CONFLICT
        self.messages.append((op.event, self.now))
        return OK

    def _find(self, op: Op) -> Answer:
        return OK if any(event == op.event for event, _ in self.messages) else MISSING


@dataclass(slots=True)
class ModelLedger:
    """The ledger as a delivery sees it."""

    world: World

    async def claim(self, event: Event) -> Claim | Duplicate | InProgress:
        self.world.tokens += 1
        claimed: Claim | Duplicate | InProgress = await call(
            Op("claim", event.id, f"token-{self.world.tokens}")
        )
        return claimed

    async def complete(self, claim: Claim, svix_message_id: str | None) -> None:
        await call(Op("complete", claim.key, claim))

    async def release(self, claim: Claim) -> None:
        await call(Op("release", claim.key, claim))

    async def park(self, letter: DeadLetter) -> None:
        await call(Op("park", letter.event_id or ""))

    async def close(self) -> None:
        raise NotImplementedError


class ModelSender:
    """Svix as a delivery sees it."""

    async def send(self, event: Event, idempotency_key: str) -> Answer:
        answer: Answer = await call(Op("send", event.id))
        return answer

    async def find(self, event: Event) -> Answer:
        answer: Answer = await call(Op("find", event.id))
        return answer


class ModelPacer(Pacer):
    """A few turns, then none in time."""

    def __init__(self) -> None:
        self._left = TURNS

    def refusal(self, deadline: float) -> TurnedAway | None:
        return None

    async def turn(self, deadline: float, delay: float = 0.0) -> None:
        if not self._left:
            raise TurnedAway(Outcome.RATE_LIMITED, 1.0)
        self._left -= 1
        await call(Op("turn", ""))

    def report(self, answer: Answer) -> None:
        pass


def failed() -> LedgerUnavailable:
    """What the ledger raises where it does not answer."""
    return LedgerUnavailable("the model says so")
