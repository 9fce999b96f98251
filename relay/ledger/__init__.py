"""The ledger: one record per event, which says who may send it and whether it was delivered.

It also stores the dead letters. `Ledger` is the Protocol that a delivery uses. `Archive` adds what
the operator's commands use. `firestore.py` and `sqlite.py` implement both and pass one test suite.

A ledger does not call Svix and decides no outcome. It gives a claim to one worker at a time, judges
leases by its own clock, and rejects the writes of a worker that has lost its claim.

Durations are in seconds, except those that are added to dates, which are timedeltas.
"""

import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol, Self

from relay.envelope import Event, Form, Names, Source
from relay.outcome import Result

LEASE_SECONDS = 30.0
"""How long a claim is valid. A claim takes at most 5 s, and the call to Svix 10 s. So no worker
still calls Svix when its lease ends. The record holds the claim's lease, so that every version of
the relay judges the claim by the same lease."""

LEDGER_CALL_SECONDS = 5.0
"""The maximum time of a call, including its retries."""

PARK_SECONDS = 20.0
"""The maximum time of `Ledger.park`. A large letter takes a dozen writes. Cloud Run ends a request
30 s after its budget, so there is time to store a letter after the budget."""

RECORD_LIFETIME = timedelta(days=45)
"""Longer than Pub/Sub can keep a message: 7 days in the subscription and 31 in the dead-letter
subscription. While a message can be redelivered, the record is needed to recognise it."""

DEAD_LETTER_LIFETIME = timedelta(days=90)

SHARDS = 4
"""The number of parts that the records' index is split into. The index is ordered by time, so all
new entries go to its end, where Firestore takes 500 a second. Each shard has an end of its own."""

_LONGEST_NAME = 1024  # characters of each name and each id in a dead letter


def key_of(project: str, event_id: str) -> str:
    """The event's document id and its idempotency key at Svix: 64 hexadecimal digits.

    It is a hash for two reasons. Firestore reserves some document ids, such as `__x__`. Sequential
    ids would put all of Firestore's load on one range of keys. A newline separates the two names,
    because neither can contain one.
    """
    return hashlib.sha256(f"{project}\n{event_id}".encode()).hexdigest()


class LedgerUnavailable(Exception):
    """The ledger failed or did not answer in time. A write may or may not have been made."""


class LedgerMisconfigured(LedgerUnavailable):
    """The credentials, the project, the database or the file are wrong.

    Every call fails until a person corrects that. The message says what is wrong, and usually what
    to check.
    """


class ClaimLost(Exception):
    """Someone else has written the record meanwhile, or it was deleted."""


class LetterDamaged(Exception):
    """A dead letter's payload is incomplete or damaged. The message says what is wrong."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to send one event, until the lease ends."""

    key: str
    token: str
    """A random string that identifies this claim."""
    version: object
    """Firestore: the record's version, which a settle requires to be unchanged. SQLite: None."""
    attempts: int
    """How many claims the event has had, including this one."""
    age: float
    """Seconds since the event's first claim, by the ledger's clock."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The event was delivered before."""

    svix_message_id: str | None
    payload_changed: bool
    attempts: int


@dataclass(frozen=True, slots=True)
class InProgress:
    """Another delivery holds the claim, for `lease_remaining` seconds at most."""

    lease_remaining: float
    attempts: int


class State(StrEnum):
    """The state of an event's record."""

    CLAIMED = "claimed"
    RELEASED = "released"
    DELIVERED = "delivered"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One event's record, as it was at `read_at`. All times are by the ledger's clock."""

    project: str
    event_id: str
    event_type: str
    state: State
    claim: str
    """The token of the latest claim."""
    lease: float
    """The lease of the latest claim in seconds; it begins at `touched_at`."""
    attempts: int
    """How many claims the event has had."""
    payload_sha256: str
    """The hash of the payload that was claimed first. It shows whether the same id comes again with
    another payload."""
    first_claimed_at: datetime
    touched_at: datetime
    """When the record was last written."""
    read_at: datetime
    version: object = field(default=None, repr=False)
    """The record's version when it was read. A write requires it to be unchanged."""
    delivered_at: datetime | None = None
    svix_message_id: str | None = None
    fanout_confirmed: bool | None = None
    """True if we saw Svix accept the event, which means that Svix has queued it. False if we only
    know from asking that Svix has the message. None if the event is not delivered."""
    pubsub_message_id: str | None = None
    """The id of the Pub/Sub message whose delivery made the latest claim."""

    @property
    def key(self) -> str:
        """The record's document id."""
        return key_of(self.project, self.event_id)

    @property
    def age(self) -> float:
        """How many seconds ago the event was first claimed."""
        return (self.read_at - self.first_claimed_at).total_seconds()

    @property
    def lease_remaining(self) -> float:
        """How many seconds the claim is still valid; zero or less if nobody holds one."""
        if self.state is not State.CLAIMED:
            return 0.0
        return self.lease - (self.read_at - self.touched_at).total_seconds()

    def denial(self, event: Event) -> Duplicate | InProgress | None:
        """Why a claim of `event` is denied now; None if it is not."""
        if self.state is State.DELIVERED:
            changed = event.payload_sha256 != self.payload_sha256
            return Duplicate(self.svix_message_id, changed, self.attempts)
        if (remaining := self.lease_remaining) > 0:
            return InProgress(remaining, self.attempts)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A push that can never succeed, as it is stored."""

    id: str
    """64 hexadecimal digits."""
    data: bytes = field(repr=False)
    """The event's bytes, or the request's whole body."""
    form: Form = Form.DATA
    """What `data` is."""
    attributes: str = field(default="{}", repr=False)
    """The message's attributes as JSON text."""
    reason: str
    """The outcome: `rejected`, `malformed` or `conflict`."""
    detail: str
    """The reason in words for people. Of Svix's answer it has only the status, the code and the
    names of the faulty fields."""
    message_id: str | None = None
    subscription: str | None = None
    project: str | None = None
    event_id: str | None = None
    event_type: str | None = None
    svix_status: int | None = None
    svix_code: str | None = None
    discarded: str | None = None
    """Why an operator discarded the letter. A discarded letter has no `data` and `attributes`."""
    discarded_at: datetime | None = None
    """By the ledger's clock, like `parked_at`."""
    parked_at: datetime | None = None

    @classmethod
    def of(cls, result: Result, source: Source, names: Names) -> Self:
        """The letter for a push that ended as `result`.

        A message always gets the same id, so a message that is parked twice is stored once.
        """
        attributes = dict(source.attributes)
        if source.message_id is None:
            # Two events in binary mode may differ in their attributes only.
            letter_id = hashlib.sha256(source.data)
            letter_id.update(f"\n{json.dumps(attributes, sort_keys=True)}".encode())
        else:
            message = f"{source.subscription}\n{source.message_id}"
            letter_id = hashlib.sha256(message.encode("utf-8", "backslashreplace"))
        return cls(
            id=letter_id.hexdigest(),
            data=source.data,
            form=source.form,
            attributes=json.dumps(attributes),
            reason=result.outcome,
            detail=result.detail or "",
            message_id=_storable(source.message_id),
            subscription=_storable(source.subscription),
            project=_storable(names.project),
            event_id=_storable(names.id),
            event_type=_storable(names.type),
            svix_status=result.svix_status,
            svix_code=result.svix_code,
        )


def _storable(name: str | None) -> str | None:
    """Shorten a name, and escape half surrogate pairs, which UTF-8 cannot encode."""
    if name is None:
        return None
    return name[:_LONGEST_NAME].encode("utf-8", "backslashreplace").decode()


class Ledger(Protocol):
    """A ledger as a delivery uses it.

    Every method may raise `LedgerUnavailable`. A method takes at most `LEDGER_CALL_SECONDS` unless
    it says otherwise. A cancelled write may still be made.
    """

    async def record(self, key: str) -> Record | None:
        """One event's record; None if there is none."""

    async def claim(
        self, event: Event, *, previous: Claim | None = None
    ) -> Claim | Duplicate | InProgress:
        """Claim the event, or say why that is not possible.

        `previous` is this delivery's own earlier claim. If its release was lost, the record still
        holds that claim. Then the new claim replaces it immediately.
        """

    async def complete(
        self, claim: Claim, svix_message_id: str | None, *, fanout_confirmed: bool
    ) -> None:
        """Record the event as delivered. Raises `ClaimLost` if another delivery has the claim.

        The write is conditional on the claim, so it may be repeated, even after the lease.
        """

    async def release(self, claim: Claim) -> Claim:
        """End the claim, so that the next delivery can claim the event immediately.

        Returns the released claim. Pass it to the next call of `claim` as `previous`: then that
        call usually needs no read. Raises `ClaimLost` as `complete` does.
        """

    async def park(self, letter: DeadLetter) -> None:
        """Store a dead letter. If it is already stored, nothing changes.

        Takes at most `PARK_SECONDS`.
        """

    async def close(self) -> None:
        """Close connections and files. Calls under way may raise `LedgerUnavailable`."""


class Archive(Ledger, Protocol):
    """A ledger as the operator's commands use it: they read many records, and repair some.

    An iterator holds one page in memory. It retries a page that fails. After two minutes of
    failures it raises `LedgerUnavailable`.
    """

    def undelivered(self) -> AsyncIterator[Record]:
        """All records that are not delivered, of any age. The record written longest ago is first.

        A record that is written during the iteration moves to the end. So the iterator may return
        it twice, or not at all if it is delivered meanwhile.
        """

    def touched_since(self, since: datetime) -> AsyncIterator[Record]:
        """The records that were written at `since` or later, in the order of their last write.

        The iterator may return a record twice if it is written during the iteration.
        """

    async def repair(
        self,
        record: Record,
        state: State,
        svix_message_id: str | None = None,
        *,
        fanout_confirmed: bool | None = None,
    ) -> None:
        """Write the event's true state into its record.

        Raises `ClaimLost` if the record was written after it was read.
        """

    async def dead_letter(self, letter_id: str) -> DeadLetter | None:
        """One dead letter with its payload; None if there is none.

        Raises `LetterDamaged` if the payload is incomplete. Takes at most `PARK_SECONDS`.
        """

    def dead_letters(
        self, prefix: str = "", *, project: str | None = None, event_id: str | None = None
    ) -> AsyncIterator[DeadLetter]:
        """The dead letters whose id begins with `prefix`, in the order of their ids.

        They come without `data` and `attributes`, which are not read.
        """

    async def update_dead_letter(self, letter: DeadLetter) -> None:
        """Write the letter's reason and detail, and Svix's status and code.

        If the letter was discarded or deleted meanwhile, nothing happens.
        """

    async def discard_dead_letter(self, letter_id: str, why: str) -> None:
        """Erase a letter's payload, and keep the rest.

        If the call is interrupted, repeat it: it then erases what is left of the payload. If the
        letter does not exist or is completely discarded, nothing happens. Erasing a large payload
        may take minutes.
        """

    async def delete_dead_letter(self, letter_id: str) -> None:
        """Delete a letter that was replayed. If it does not exist, nothing happens.

        A letter that was discarded meanwhile stays, without its payload. Deleting a large letter
        may take minutes.
        """
