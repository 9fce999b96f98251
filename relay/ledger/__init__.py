"""The record of what was sent: one document per event, and the dead letters.

The Protocols and their values: `Ledger` is what a delivery needs, `Archive` what the operator's
commands need besides. `firestore.py` and `sqlite.py` implement both and pass one contract suite.
A ledger knows nothing of Svix and decides nothing about an event: it makes a claim exclusive,
judges leases by its own clock, and refuses a worker whose claim has passed to another.
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

LEASE = timedelta(seconds=30)
"""How long a claim holds. An attempt takes at most 20 s from its claim on (5 to claim, 10 to call
Svix, 5 to settle), so no worker is still calling when its lease ends. Each claim's lease is in its
record: everybody judges it as the claimant did."""

LEDGER_TIMEOUT = timedelta(seconds=5)
"""The longest one call may take, its retries included."""

PARK_TIMEOUT = timedelta(seconds=20)
"""The longest `Ledger.park` may take: a large letter takes a dozen writes. The function's time-out
leaves 30 s after the request's budget, in which a letter may still be stored."""

RECORD_LIFETIME = timedelta(days=45)
"""7 days in the subscription, 31 in the dead-letter subscription, and slack: while a message can
still come back, its record must be there to recognise it."""

DEAD_LETTER_LIFETIME = timedelta(days=90)

SHARDS = 4
"""The records' index is ordered by time, and so is written at its end only. Each shard has an end
of its own: Firestore writes 500 entries a second to one."""

_LONGEST_NAME = 1024  # characters, of what a malformed event calls its id, type or project


def key_of(project: str, event_id: str) -> str:
    """The event's document id and its idempotency key at Svix: 64 hexadecimal digits.

    A hash, because an id may hold what a document id may not, and because sequential ids would
    heat one range of Firestore's keys. Neither name can contain the newline.
    """
    return hashlib.sha256(f"{project}\n{event_id}".encode()).hexdigest()


class LedgerUnavailable(Exception):
    """The ledger failed or did not answer in time; what was asked may or may not have happened."""


class LedgerMisconfigured(LedgerUnavailable):
    """No call succeeds until a person acts: the credentials, the project, the database or the file.

    Its text is one sentence that says what to check.
    """


class ClaimLost(Exception):
    """The lease ran out and another delivery has taken the claim over: nothing was written."""


class LetterDamaged(Exception):
    """A dead letter's payload is not whole; the text names the part that is missing or wrong."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to send one event, until the lease runs out.

    `token` is random and identifies this claim, `version` is what a settle must still find
    unchanged (opaque: the last update time in Firestore), `attempts` counts the event's claims
    including this one, and `age` is the time since its very first claim, by the ledger's clock.
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
    """Another delivery holds the claim, for `lease_remaining` at most."""

    lease_remaining: timedelta
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
    lease: timedelta
    """Of the latest claim, from `touched_at` on."""
    attempts: int
    payload_sha256: str
    """Of the first claim's event, so that another payload under the same id is noticed."""
    first_claimed_at: datetime
    touched_at: datetime
    """When it was last written."""
    read_at: datetime
    version: object = field(default=None, repr=False)
    """What a write must still find unchanged; opaque, as a claim's."""
    delivered_at: datetime | None = None
    svix_message_id: str | None = None
    fanout_confirmed: bool | None = None
    """Of a delivered event: whether Svix was seen to accept it, and so has queued it. False where
    the message was found by asking; None where the event is not delivered."""
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

    @property
    def lease_remaining(self) -> timedelta:
        """How long the claim still holds; zero or less where nobody holds one."""
        if self.state is not State.CLAIMED:
            return timedelta(0)
        return self.lease - (self.read_at - self.touched_at)

    def refusal(self, event: Event) -> Duplicate | InProgress | None:
        """Why `event` cannot be claimed now; None where its record may be taken over."""
        if self.state is State.DELIVERED:
            changed = event.payload_sha256 != self.payload_sha256
            return Duplicate(self.svix_message_id, changed, self.attempts)
        if (remaining := self.lease_remaining) > timedelta(0):
            return InProgress(remaining, self.attempts)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A push that can never succeed, as it is parked."""

    id: str
    """64 hexadecimal digits, fixed when it is parked."""
    data: bytes = field(repr=False)
    """As it came."""
    form: Form = Form.DATA
    """What `data` is."""
    attributes: str = field(default="{}", repr=False)
    """The message's attributes as JSON text, which can hold whatever came."""
    reason: str
    """The outcome's word: `rejected`, `malformed` or `conflict`."""
    detail: str
    """For people; never Svix's own words."""
    message_id: str | None = None
    subscription: str | None = None
    project: str | None = None
    event_id: str | None = None
    event_type: str | None = None
    svix_status: int | None = None
    svix_code: str | None = None
    discarded: str | None = None
    """Why an operator gave it up: `data` and `attributes` are gone then, all else stays."""
    discarded_at: datetime | None = None
    """Set by the ledger's clock, as `parked_at`."""
    parked_at: datetime | None = None

    @classmethod
    def of(cls, result: Result, source: Source, names: Names) -> Self:
        """The letter for a push that ended so.

        Its id is the same for the same message, so that parking twice is once.
        """
        attributes = dict(source.attributes)
        if source.message_id is None:
            # In binary mode two events may differ in their attributes alone.
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
    """A malformed event's names can be of any length, and hold half a surrogate pair."""
    if name is None:
        return None
    return name[:_LONGEST_NAME].encode("utf-8", "backslashreplace").decode()


class Ledger(Protocol):
    """What `delivery.py` asks of a ledger.

    Every method raises `LedgerUnavailable`, and takes at most `LEDGER_TIMEOUT` where it doesn't
    say otherwise. Cancelled, a write may still land.
    """

    async def record(self, key: str) -> Record | None:
        """One event's record."""

    async def claim(
        self, event: Event, *, previous: Claim | None = None
    ) -> Claim | Duplicate | InProgress:
        """Take the right to send this event, or learn why not.

        `previous` is this delivery's own earlier claim. Where its release was lost, the record
        still says that it holds: it is taken over at once.
        """

    async def complete(
        self, claim: Claim, svix_message_id: str | None, *, fanout_confirmed: bool
    ) -> None:
        """Record the event as delivered. Raises `ClaimLost` where the claim is no longer ours.

        Every try of one claim has the same condition: it may be repeated after the lease.
        """

    async def release(self, claim: Claim) -> Claim:
        """Let the next delivery claim it at once. Raises `ClaimLost` as `complete` does.

        Returns the claim as it was released: as `previous`, it saves the next claim a read.
        """

    async def park(self, letter: DeadLetter) -> None:
        """Store a dead letter; parking one again changes nothing. At most `PARK_TIMEOUT`."""

    async def close(self) -> None:
        """Free connections and files. What is under way ends as `LedgerUnavailable`."""


class Archive(Ledger, Protocol):
    """A ledger as the operator's commands use it: to look into, and to mend.

    Iterating holds one page in memory. A page that fails is asked for again, for up to two
    minutes: only then `LedgerUnavailable` is raised.
    """

    def undelivered(self) -> AsyncIterator[Record]:
        """All records that are not delivered, whatever their age, the longest untouched first.

        A record that is written meanwhile moves to the end: it may come twice, or, delivered, not
        at all.
        """

    def touched_since(self, since: datetime) -> AsyncIterator[Record]:
        """The records that were written at `since` or later, in the order of that.

        One that is written meanwhile comes twice.
        """

    async def mend(
        self,
        record: Record,
        state: State,
        svix_message_id: str | None = None,
        *,
        fanout_confirmed: bool | None = None,
    ) -> None:
        """Write what is known of the event by now.

        Raises `ClaimLost` where its record was written since it was read.
        """

    async def dead_letter(self, letter_id: str) -> DeadLetter | None:
        """One dead letter, whole. Raises `LetterDamaged` where it is not; `PARK_TIMEOUT`."""

    def dead_letters(
        self, prefix: str = "", *, project: str | None = None, event_id: str | None = None
    ) -> AsyncIterator[DeadLetter]:
        """Those whose id begins so, by id, without `data` and `attributes`: none is read."""

    async def update_dead_letter(self, letter: DeadLetter) -> None:
        """Say anew why the letter is there: its reason, detail, and Svix's status and code.

        A letter that was discarded or deleted meanwhile stays so.
        """

    async def discard_dead_letter(self, letter_id: str, why: str) -> None:
        """Give a letter up for good: its payload is erased, the rest says what it was.

        Interrupted, it is to be called again. A letter that is not there, or discarded, is no
        fault.
        """

    async def delete_dead_letter(self, letter_id: str) -> None:
        """Delete a letter that was replayed. One that is not there is no fault.

        One that was discarded meanwhile stays, without its payload.
        """
