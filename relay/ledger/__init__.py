"""The record of what was sent: one document per event, and the dead letters.

The Protocols and their values: `Ledger` is what a delivery needs, `Archive` what the operator's
commands need besides. `firestore.py` and `sqlite.py` implement both and pass one contract suite.
A ledger knows nothing of Svix and decides nothing about an event: it makes a claim exclusive,
judges leases by its own clock, and refuses a worker whose claim has passed to another.
"""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from relay.envelope import Event

LEDGER_TIMEOUT = timedelta(seconds=5)
"""The longest one call may take, its retries included: it must fit beside a call to Svix in the
last 15 s of a request's budget."""

RECORD_LIFETIME = timedelta(days=45)
"""7 days in the subscription, 31 in the dead-letter subscription, and slack: while a message can
still come back, its record must be there to recognise it."""

DEAD_LETTER_LIFETIME = timedelta(days=90)


def key_of(project: str, event_id: str) -> str:
    """The event's document id and its idempotency key at Svix: 64 hexadecimal digits.

    A hash, because an id may hold what a document id may not, and because sequential ids would
    heat one range of Firestore's keys. Neither name can contain the newline.
    """
    return hashlib.sha256(f"{project}\n{event_id}".encode()).hexdigest()


class LedgerUnavailable(Exception):
    """The ledger failed or did not answer within `LEDGER_TIMEOUT`.

    What was asked may or may not have happened.
    """


class ClaimLost(Exception):
    """The lease ran out and another delivery has taken the claim over: nothing was written."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to send one event, until the lease runs out.

    `token` is this claim's own random mark, `version` what a settle must still find unchanged
    (opaque: the last update time in Firestore), `attempts` counts the event's claims including
    this one, and `age` is the time since the event's very first claim, by the ledger's clock.
    """

    key: str
    token: str
    version: object
    attempts: int
    age: timedelta


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The event was delivered before."""

    svix_message_id: str | None
    payload_changed: bool
    attempts: int


@dataclass(frozen=True, slots=True)
class InProgress:
    """Another delivery holds the claim; its lease is over in `lease_left` at the latest."""

    lease_left: timedelta
    attempts: int


class State(StrEnum):
    """Where an event's record stands."""

    CLAIMED = "claimed"
    RELEASED = "released"
    DELIVERED = "delivered"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One event's record, as it was at `read_at`. All times are the ledger's own clock's."""

    project: str
    event_id: str
    event_type: str
    state: State
    claim: str
    """The token of the latest claim."""
    attempts: int
    payload_sha256: str
    """Of the first claim's event: another payload under the same id stays noticeable."""
    first_claimed_at: datetime
    updated_at: datetime
    read_at: datetime
    delivered_at: datetime | None = None
    svix_message_id: str | None = None
    pubsub_message_id: str | None = None
    """Of the latest claim's push."""

    @property
    def key(self) -> str:
        """The record's document id."""
        return key_of(self.project, self.event_id)

    @property
    def age(self) -> timedelta:
        """How long ago the event was claimed first."""
        return self.read_at - self.first_claimed_at

    def lease_left(self, lease: timedelta) -> timedelta:
        """How long the claim still holds; zero or less where nobody holds one."""
        if self.state is not State.CLAIMED:
            return timedelta(0)
        return lease - (self.read_at - self.updated_at)

    def refusal(self, event: Event, lease: timedelta) -> Duplicate | InProgress | None:
        """Why `event` cannot be claimed now; None where this record may be taken over."""
        if self.state is State.DELIVERED:
            changed = event.payload_sha256 != self.payload_sha256
            return Duplicate(self.svix_message_id, changed, self.attempts)
        if (left := self.lease_left(lease)) > timedelta(0):
            return InProgress(left, self.attempts)
        return None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A push that can never succeed, as it is parked.

    `data` is the event's bytes as they came (the whole body where no event could be taken from
    it). `reason` is the outcome and its detail, never Svix's own words.
    """

    data: bytes
    reason: str
    detail: str
    message_id: str | None = None
    subscription: str | None = None
    attributes: str = "{}"
    """The message's attributes as JSON text, which can hold whatever came."""
    project: str | None = None
    event_id: str | None = None
    event_type: str | None = None
    svix_status: int | None = None
    svix_code: str | None = None
    discarded: str | None = None
    """Why an operator gave it up: `data` and `attributes` are gone then, the rest says what was."""
    parked_at: datetime | None = None
    """Set by the ledger's clock."""

    @property
    def id(self) -> str:
        """The same for the same message, so that parking twice is once."""
        if self.message_id is None:
            return hashlib.sha256(self.data).hexdigest()
        return hashlib.sha256(f"{self.subscription}\n{self.message_id}".encode()).hexdigest()


class Ledger(Protocol):
    """What `delivery.py` asks of a ledger.

    Every method raises `LedgerUnavailable` and takes at most `LEDGER_TIMEOUT`; cancelled, a write
    may still land.
    """

    async def claim(self, event: Event) -> Claim | Duplicate | InProgress:
        """Take the right to send this event, or learn why not."""

    async def complete(self, claim: Claim, svix_message_id: str | None) -> None:
        """Record the event as delivered. Raises `ClaimLost` where the claim is no longer ours."""

    async def release(self, claim: Claim) -> None:
        """Let the next delivery claim it at once. Raises `ClaimLost` as `complete` does."""

    async def park(self, letter: DeadLetter) -> None:
        """Store a dead letter under its id; parking it again changes nothing."""

    async def close(self) -> None:
        """Free connections and files."""


class Archive(Ledger, Protocol):
    """A ledger as the operator's commands use it: to look into, and to mend.

    Every call, and every page of what is iterated over, keeps to `LEDGER_TIMEOUT` and raises as a
    `Ledger`'s do. Nothing is held in memory but one page.
    """

    async def record(self, key: str) -> Record | None:
        """One event's record."""

    async def count(self) -> int:
        """How many records there are."""

    def records(self) -> AsyncIterator[Record]:
        """All records, ordered by key. What is written meanwhile may be in or not."""

    async def mend(self, record: Record, state: State, svix_message_id: str | None = None) -> None:
        """Write what is known of the event by now.

        Raises `ClaimLost` where its record was written since it was read.
        """

    async def dead_letter(self, letter_id: str) -> DeadLetter | None:
        """One dead letter, whole."""

    def dead_letters(
        self, prefix: str = "", *, project: str | None = None, event_id: str | None = None
    ) -> AsyncIterator[tuple[str, DeadLetter]]:
        """Those whose id begins so, each with its id, without `data` and `attributes`."""

    async def restate(self, letter_id: str, letter: DeadLetter) -> None:
        """Say anew why the letter is there, or that it was discarded."""

    async def remove(self, letter_id: str) -> None:
        """Delete a dead letter; one that is not there is no fault."""
