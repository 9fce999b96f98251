"""The record of what was sent: one document per event, and the dead letters.

The Protocol and its values; `firestore.py` and `sqlite.py` implement it and pass one contract
suite. A ledger knows nothing of Svix and decides nothing about an event: it makes a claim
exclusive, judges leases by its own clock, and refuses a worker whose claim has passed to another.
"""

import hashlib
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

    def refusal(self, event: Event, lease: timedelta) -> Duplicate | InProgress | None:
        """Why `event` cannot be claimed now; None where this record may be taken over."""
        if self.state is State.DELIVERED:
            changed = event.payload_sha256 != self.payload_sha256
            return Duplicate(self.svix_message_id, changed, self.attempts)
        lease_left = lease - (self.read_at - self.updated_at)
        if self.state is State.CLAIMED and lease_left > timedelta(0):
            return InProgress(lease_left, self.attempts)
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
