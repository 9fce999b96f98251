"""Where one event is: the ledger's record, its dead letters, Svix's message and its attempts."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from svix.models import MessageAttemptOut, MessageEndpointOut, MessageOut
from svix.models.message_status import MessageStatus

from relay.ledger import Archive, DeadLetter, Record, State, key_of
from relay.operate.svix import SvixSilent, SvixView


class Place(StrEnum):
    """Where an event is; the value is the word that scripts read."""

    NEVER_SEEN = "never_seen"
    CLAIMED = "claimed"
    ABANDONED = "abandoned"
    WAITING = "waiting"
    PARKED = "parked"
    DISCARDED = "discarded"
    UNSETTLED = "unsettled"
    IN_SVIX = "in_svix"
    DELIVERED = "delivered"
    FAILING = "failing"
    MISSING = "missing"
    UNKNOWN = "unknown"

    @property
    def is_in_svix(self) -> bool:
        """Whether Svix has it: the relay's part is done."""
        return self in {Place.IN_SVIX, Place.DELIVERED, Place.FAILING, Place.UNSETTLED}


@dataclass(frozen=True, slots=True)
class Destination:
    """One of the customer's endpoints, and how the message stands there."""

    url: str
    status: str
    http: int | None
    attempts: int
    last_attempt: datetime | None
    next_attempt: datetime | None


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Everything known of one event."""

    project: str
    event_id: str
    lease: timedelta
    record: Record | None
    letters: tuple[tuple[str, DeadLetter], ...]
    message: MessageOut | None = None
    destinations: tuple[Destination, ...] = ()
    svix_silent: str | None = None
    """Why Svix could not be asked."""

    @property
    def place(self) -> Place:
        """Where it is."""
        if self.message is not None:
            return self._at_svix()
        record = self.record
        if record and record.state is State.DELIVERED:
            return Place.UNKNOWN if self.svix_silent else Place.MISSING
        if record and record.lease_left(self.lease) > timedelta(0):
            return Place.CLAIMED
        if self.letters:
            discarded = all(letter.discarded for _, letter in self.letters)
            return Place.DISCARDED if discarded else Place.PARKED
        if record:
            return Place.WAITING if record.state is State.RELEASED else Place.ABANDONED
        return Place.UNKNOWN if self.svix_silent else Place.NEVER_SEEN

    def _at_svix(self) -> Place:
        if self.record is None or self.record.state is not State.DELIVERED:
            return Place.UNSETTLED
        if any(destination.status == "failed" for destination in self.destinations):
            return Place.FAILING
        if self.destinations and all(d.status == "success" for d in self.destinations):
            return Place.DELIVERED
        return Place.IN_SVIX


async def find(
    archive: Archive, svix: SvixView, project: str, event_id: str, lease: timedelta
) -> Whereabouts:
    """Ask ledger and Svix. Raises `LedgerUnavailable`; Svix's silence is part of the answer."""
    record = await archive.record(key_of(project, event_id))
    listing = archive.dead_letters(project=project, event_id=event_id)
    letters = tuple([letter async for letter in listing])
    try:
        message = await svix.message(project, event_id)
        destinations: tuple[Destination, ...] = ()
        if message is not None:
            attempts = await svix.attempts(project, message.id)
            standing = await svix.destinations(project, message.id)
            destinations = tuple(_destination(endpoint, attempts) for endpoint in standing)
    except SvixSilent as silence:
        return Whereabouts(project, event_id, lease, record, letters, svix_silent=str(silence))
    return Whereabouts(project, event_id, lease, record, letters, message, destinations)


def _destination(endpoint: MessageEndpointOut, attempts: list[MessageAttemptOut]) -> Destination:
    here = [attempt for attempt in attempts if attempt.endpoint_id == endpoint.id]
    last = max(here, key=lambda attempt: attempt.timestamp, default=None)
    words = {MessageStatus.SUCCESS: "success", MessageStatus.FAIL: "failed"}
    return Destination(
        url=endpoint.url,
        status=words.get(endpoint.status, "pending"),
        http=last.response_status_code if last else None,
        attempts=len(here),
        last_attempt=last.timestamp if last else None,
        next_attempt=endpoint.next_attempt,
    )
