"""A model of the world around `relay/delivery.py`, small enough to try everything in it.

It models the ledger and Svix. Each call is one step, and each step has its possible faults. Times
are in seconds. Svix forgets an idempotency key after 12 h and an event id after 24 h, but never a
message.
"""

import contextlib
import types
from collections.abc import AsyncIterator, Generator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from relay.envelope import Event
from relay.ledger import (
    Claim,
    ClaimLost,
    DeadLetter,
    Duplicate,
    InProgress,
    LedgerUnavailable,
    key_of,
)
from relay.outcome import Answer, Call, Outcome, Verdict
from relay.pacing import NoTurn, Waiter

EVENT_OF = {key_of("acme", event): event for event in "ab"}
LEASE = 30.0
KEY_LIFETIME = 12 * 3600.0
EVENT_ID_LIFETIME = 24 * 3600.0

OK = Answer(Call.SEND, Verdict.ACCEPTED, 202, message_id="msg")
CONFLICT = Answer(Call.SEND, Verdict.CONFLICT, 409, code="conflict")
FOUND = Answer(Call.ASK, Verdict.ACCEPTED, 200, message_id="msg")
MISSING = Answer(Call.ASK, Verdict.MISSING, 404, code="not_found")

# The faulty answers of Svix. With those in `LANDING`, Svix has stored the message. With `unqueued`,
# it never sends the message to the endpoints.
LANDING = {
    "lost": Answer(Call.SEND, Verdict.UNAVAILABLE, failure="ReadError"),
    "broken off": Answer(Call.SEND, Verdict.BROKEN_OFF, 202),
    "unqueued": Answer(Call.SEND, Verdict.UNAVAILABLE, 500),
}
SEND_FAULTS = LANDING | {
    "500": Answer(Call.SEND, Verdict.UNAVAILABLE, 500),
    "hangs": Answer(Call.SEND, Verdict.UNAVAILABLE, failure="no answer in 10 s"),
    "429": Answer(Call.SEND, Verdict.RATE_LIMITED, 429),
    "race": CONFLICT,
    "401": Answer(Call.SEND, Verdict.MISCONFIGURED, 401),
    "422": Answer(Call.SEND, Verdict.REJECTED, 422),
}
ASK_FAULTS = {name: replace(SEND_FAULTS[name], call=Call.ASK) for name in ("500", "429", "401")}
HANGS_SECONDS = 10.0
RACE_SECONDS = 5.0
"""The longest that two first events race for an application, or that a call locks its key."""


@dataclass(frozen=True, slots=True)
class Op:
    """One call that a delivery waits for."""

    name: Literal["claim", "look", "complete", "release", "park", "turn", "sleep", "send", "find"]
    event: str
    argument: Any = None

    @property
    def writes(self) -> bool:
        """Whether it may take effect in the ledger even if it is not answered."""
        return self.name in {"claim", "complete", "release", "park"}

    @property
    def is_private(self) -> bool:
        """Whether no other delivery can notice when it happens, so that its order is irrelevant."""
        return self.name in {"turn", "sleep"}

    @property
    def faults(self) -> tuple[str, ...]:
        """Everything that may go wrong with it."""
        crashes = ("crash before", "crash after", "cancelled")
        match self.name:
            case "claim" | "complete" | "release" | "park":
                return (*crashes, "fails", "times out but lands", "lands later")
            case "look":
                return ("fails",)
            case "turn":  # a crash here is the same as a crash before the claim
                return ("turned away", "superseded")
            case "sleep":
                return ("crash before", "cancelled")
            case "send":
                return (*crashes, *SEND_FAULTS)
            case "find":
                return (*crashes, *ASK_FAULTS)


@types.coroutine
def call(op: Op) -> Generator[Op, Any, Any]:
    """Pass an operation to the scheduler, and wait for its result."""
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
    lease: float = LEASE
    fanout_confirmed: bool = False


@dataclass(slots=True)
class World:
    """Everything that outlives a worker, and the clock."""

    now: float = 0.0
    rows: dict[str, Row] = field(default_factory=dict)
    parked: set[str] = field(default_factory=set)
    parked_as_conflict: set[str] = field(default_factory=set)
    messages: list[tuple[str, float, bool]] = field(default_factory=list)
    """Svix's messages: the event, the time, and whether Svix has queued it."""
    tokens: int = 0
    ids_are_taken: bool = False
    """Whether Svix says that the events' ids are taken, although asking finds no message."""

    def state(self) -> tuple[object, ...]:
        """The state. Two worlds with the same state behave the same from here on."""
        rows = tuple(sorted((event, row) for event, row in self.rows.items()))
        shown = tuple((event, repr(row)) for event, row in rows)
        return (self.now, shown, tuple(sorted(self.parked)), tuple(self.messages))

    def perform(self, op: Op) -> Any:
        """Perform an operation. Returns its result, or raises."""
        return getattr(self, f"_{op.name}")(op)

    def _claim(self, op: Op) -> Claim | Duplicate | InProgress:
        token, previous = op.argument
        row = self.rows.get(op.event)
        if row is None:
            row = Row("claimed", token, 1, 1, self.now, self.now)
        elif row.token != previous and (denial := self.denial(row)):
            return denial
        elif row.state == "delivered":
            return Duplicate("msg", payload_changed=False, attempts=row.attempts)
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
        age = self.now - row.first_claimed_at
        return Claim(op.event, token, row.version, row.attempts, age)

    def denial(self, row: Row) -> Duplicate | InProgress | None:
        """Why the event can't be claimed now, by its record."""
        if row.state == "delivered":
            return Duplicate("msg", payload_changed=False, attempts=row.attempts)
        if row.state == "claimed" and self.now - row.updated_at < self.lease(row):
            return InProgress(LEASE, row.attempts)
        return None

    def lease(self, row: Row) -> float:
        """The lease of a claim: the one in its record."""
        return row.lease

    def _look(self, op: Op) -> "Look | None":
        row = self.rows.get(op.event)
        return None if row is None else Look(self.denial(row))

    def _sleep(self, _op: Op) -> None:
        pass

    def _complete(self, op: Op) -> None:
        claim, confirmed = op.argument
        self._settle(op.event, claim, "delivered", confirmed=confirmed)

    def _release(self, op: Op) -> None:
        self._settle(op.event, op.argument, "released", confirmed=False)

    def _settle(self, event: str, claim: Claim, state: str, *, confirmed: bool) -> None:
        row = self.rows[event]
        if not self.may_settle(row, claim):
            if (row.token, row.state) == (claim.token, state):
                return  # a repeated write of ours that had landed
            raise ClaimLost
        self.rows[event] = replace(
            row,
            state=state,
            version=row.version + 1,
            updated_at=self.now,
            fanout_confirmed=confirmed,
        )

    def may_settle(self, row: Row, claim: Claim) -> bool:
        """Fencing: whether the record has not changed since our own claim."""
        return row.version == claim.version

    def _park(self, op: Op) -> None:
        self.parked.add(op.event)
        if op.argument == Outcome.CONFLICT:
            self.parked_as_conflict.add(op.event)

    def _turn(self, _op: Op) -> bool:
        return False

    def _send(self, op: Op) -> Answer:
        return self.send(op.event)

    def send(self, event: str, *, queued: bool = True) -> Answer:
        """Store the event's message, unless Svix knows its key or its id. Queue it if `queued`."""
        sent = [at for known, at, _ in self.messages if known == event]
        if any(self.now - at < KEY_LIFETIME for at in sent) and queued:
            return OK if self._queued(event) else CONFLICT  # only a 2xx is replayed
        if self.ids_are_taken or any(self.now - at < EVENT_ID_LIFETIME for at in sent):
            return CONFLICT
        self.messages.append((event, self.now, queued))
        return OK

    def _queued(self, event: str) -> bool:
        return any(known == event and queued for known, _, queued in self.messages)

    def is_confirmed_wrongly(self, event: str) -> bool:
        """Whether the record says that Svix has queued the message, although it has not."""
        row = self.rows.get(event)
        is_sent_on = self._queued(event)
        return row is not None and row.fanout_confirmed and not is_sent_on

    def _find(self, op: Op) -> Answer:
        return FOUND if any(event == op.event for event, *_ in self.messages) else MISSING


@dataclass(frozen=True, slots=True)
class Look:
    """A record as a delivery reads it."""

    answer: Duplicate | InProgress | None

    def denial(self, _event: Event) -> Duplicate | InProgress | None:
        return self.answer


@dataclass(slots=True)
class ModelLedger:
    """The ledger as a delivery sees it."""

    world: World

    async def record(self, key: str) -> Any:
        return await call(Op("look", EVENT_OF[key]))

    async def claim(
        self, event: Event, *, previous: Claim | None = None
    ) -> Claim | Duplicate | InProgress:
        self.world.tokens += 1
        tokens = (f"token-{self.world.tokens}", previous and previous.token)
        claimed: Claim | Duplicate | InProgress = await call(Op("claim", event.id, tokens))
        return claimed

    async def complete(
        self, claim: Claim, svix_message_id: str | None, *, fanout_confirmed: bool
    ) -> None:
        await call(Op("complete", claim.key, (claim, fanout_confirmed)))

    async def release(self, claim: Claim) -> Claim:
        await call(Op("release", claim.key, claim))
        return claim

    async def park(self, letter: DeadLetter) -> None:
        await call(Op("park", letter.event_id or "", letter.reason))

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


@dataclass(slots=True)
class ModelTurn:
    """A turn. The schedule decides whether it is superseded."""

    superseded: bool

    def begin(self) -> None:
        pass

    def report(self, answer: Answer) -> None:
        pass

    def ledger_failed(self) -> None:
        pass


class ModelNacks:
    """Always allows a nack, because the spacing of nacks does not matter for the promise."""

    async def acquire(self, _until: float) -> bool:
        return True

    async def space(self, _deadline: float) -> None:
        return


@dataclass(slots=True)
class ModelPacer:
    """Gives a few turns, then raises NoTurn."""

    turns: int
    waits: bool = False
    nacks: ModelNacks = field(default_factory=ModelNacks)

    def must_wait(self, _waiter: Waiter) -> bool:
        return self.waits

    def serves_others_since(self, _project: str, _since: float) -> bool:
        return True

    @contextlib.asynccontextmanager
    async def turn(self, _waiter: Waiter) -> AsyncIterator[ModelTurn]:
        if not self.turns:
            raise NoTurn(Outcome.RATE_LIMITED, 1.0, "no turn in time")
        self.turns -= 1
        yield ModelTurn(await call(Op("turn", "")))


def failed() -> LedgerUnavailable:
    """The ledger's error when it does not answer."""
    return LedgerUnavailable("the model says so")
