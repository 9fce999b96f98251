"""Where one event is, judged from everything that is known of it. Does no I/O.

There are two questions, because two parties answer them:

    Place    how far the event came on its way into Svix: the relay's part
    Fanout   how far its message came on its way to the customer's endpoints: Svix's part

`inspect` words the answer and `reconcile` counts it. Both call `locate`, so they can't disagree.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from relay.ledger import DeadLetter, Record, State

REDELIVERED_WITHIN = timedelta(hours=1)
"""How long an event may be released before its redelivery counts as overdue. The retry policy
waits 10 minutes at most, push backoff one, and a redelivery may wait 9 minutes for its turn; an
hour is three such rounds."""

ATTEMPTED_WITHIN = timedelta(hours=1)
"""How long Svix may take for a message's first attempt. It usually takes seconds."""

LOOKED_AT_TWICE = timedelta(minutes=5)
"""How far two looks must be apart that show a message without an attempt, for Svix to have
forgotten it although it accepted it less than an hour ago."""

_IN_SUBSCRIPTION = timedelta(days=7)
_IN_DEAD_LETTER_TOPIC = timedelta(days=31)
# How long Pub/Sub keeps an event in each, as deploy.sh sets them up. An event moves from one to
# the other, so the dead-letter topic may still hold it for the sum of the two.


# -- what Svix says


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """An event's message at Svix."""

    id: str
    event_id: str | None
    event_type: str
    accepted_at: datetime
    channels: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One of a customer's endpoints.

    Of its URL only the host: for many receivers the path is the secret.
    """

    id: str
    host: str
    created_at: datetime
    disabled: bool = False
    deleted: bool = False
    event_types: frozenset[str] = frozenset()
    """Empty: all."""
    channels: frozenset[str] = frozenset()
    """Empty: all."""
    next_attempt: datetime | None = None
    """When Svix tries the message in question there again."""


class AttemptStatus(StrEnum):
    """How an attempt ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    UNDER_WAY = "under_way"
    CANCELED = "canceled"
    """By a transformation that the customer has set up for the endpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt of Svix to bring a message to an endpoint."""

    endpoint_id: str
    host: str
    status: AttemptStatus
    http: int | None
    """What the endpoint answered; None where it did not."""
    at: datetime


@dataclass(frozen=True, slots=True)
class Destinations:
    """The endpoints of the application, and what was attempted with one message."""

    endpoints: Sequence[Endpoint]
    attempts: Sequence[Attempt]


@dataclass(frozen=True, slots=True)
class SvixAnswer:
    """What Svix says of one event."""

    message: Message | None
    destinations: Destinations | None = None
    """None: not looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything that is known of one event at one time."""

    now: datetime
    record: Record | None = None
    letters: Sequence[DeadLetter] = ()
    svix: SvixAnswer | None = None
    """None: Svix was not asked, or did not answer."""
    first_looked_at: datetime | None = None
    """When an earlier look found the message without an attempt."""


# -- where it is


class Place(StrEnum):
    """How far an event came on its way into Svix; the value is the word that scripts read."""

    NEVER_SEEN = "never_seen"
    """No record, no dead letter, no message."""
    BEING_SENT = "being_sent"
    """A delivery holds the claim."""
    ABANDONED = "abandoned"
    """The delivery that held the claim died, and the next redelivery is still to come."""
    WAITING = "waiting"
    """Released: Pub/Sub brings it again."""
    OVERDUE = "overdue"
    """Not sent, and Pub/Sub should have brought it again by now."""
    PARKED = "parked"
    """A dead letter holds it."""
    DISCARDED = "discarded"
    """An operator gave it up."""
    MISSING = "missing"
    """Recorded as delivered, but Svix does not have it."""
    UNSETTLED = "unsettled"
    """Svix has it, but it is not recorded as delivered."""
    UNRECORDED = "unrecorded"
    """Svix has it, and there is no record."""
    IN_SVIX = "in_svix"
    """Svix has it, and it is recorded as delivered."""
    UNKNOWN = "unknown"
    """Only Svix could tell, and it was not asked or did not answer."""

    @property
    def in_svix(self) -> bool:
        """Whether the relay's part is done."""
        return self in {Place.IN_SVIX, Place.UNSETTLED, Place.UNRECORDED}

    @property
    def waits(self) -> bool:
        """Whether it is sent soon without anybody's help."""
        return self in {Place.BEING_SENT, Place.ABANDONED, Place.WAITING}

    @property
    def stuck(self) -> bool:
        """Whether the customer goes without it until somebody acts."""
        return self in {Place.OVERDUE, Place.PARKED, Place.MISSING}


class Fanout(StrEnum):
    """How far a message came on its way to the customer's endpoints."""

    NO_ENDPOINT = "no_endpoint"
    """No endpoint takes it: there is none, it is disabled, or it wants other events."""
    NEVER_SENT_ON = "never_sent_on"
    """An endpoint takes it, and Svix has never tried to send it there."""
    FAILING = "failing"
    """An endpoint was tried and has not taken it yet."""
    PENDING = "pending"
    """An attempt is under way or about to begin."""
    DELIVERED = "delivered"
    """Every endpoint that takes such events has it."""


class Standing(StrEnum):
    """How a message stands at one endpoint."""

    DELIVERED = "delivered"
    UNDER_WAY = "under_way"
    RETRYING = "retrying"
    FAILED = "failed"
    """Tried, and Svix tries no more by itself."""
    CANCELED = "canceled"
    QUEUED = "queued"
    NEVER_SENT = "never_sent"
    DISABLED = "disabled"
    OTHER_TYPES = "other_types"
    OTHER_CHANNELS = "other_channels"
    CREATED_LATER = "created_later"


class Remedy(StrEnum):
    """What an operator can do."""

    REPLAY = "replay"
    """Send the dead letter again."""
    FIX = "fix"
    """Let `reconcile --fix` mend it."""
    REDRIVE = "redrive"
    """Push the dead-letter topic to the function."""
    SEEK = "seek"
    """Let the subscription deliver again what it keeps."""
    PUBLISH = "publish"
    """Publish the event again."""


@dataclass(frozen=True, slots=True)
class EndpointStanding:
    """How a message stands at one endpoint, and how that is known."""

    endpoint: Endpoint
    standing: Standing
    attempts: int = 0
    last: Attempt | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Whereabouts:
    """Where an event is."""

    place: Place
    since: datetime | None
    """How long it has been there; None where nothing says so."""
    attempts: int
    """How often it was claimed, to be sent."""
    next_by: datetime | None = None
    """When what happens next by itself has happened at the latest."""
    remedies: tuple[Remedy, ...] = ()
    """What to do where nothing happens by itself, the first that fits first."""
    fanout: Fanout | None = None
    """None: there is no message, or it was not looked at."""
    standings: tuple[EndpointStanding, ...] = field(default=())


def locate(evidence: Evidence) -> Whereabouts:
    """Where the event is."""
    place = _place(evidence)
    standings = _standings(evidence)
    fanout = None if standings is None else _fanout([each.standing for each in standings])
    remedies = list(_remedies(place, evidence))
    if fanout is Fanout.NEVER_SENT_ON and Remedy.FIX not in remedies:
        remedies.append(Remedy.FIX)
    return Whereabouts(
        place=place,
        since=_since(place, evidence),
        attempts=evidence.record.attempts if evidence.record else 0,
        next_by=_next_by(place, evidence),
        remedies=tuple(remedies),
        fanout=fanout,
        standings=tuple(standings or ()),
    )


def _place(evidence: Evidence) -> Place:  # noqa: PLR0911 - the rules, in order
    record, svix = evidence.record, evidence.svix
    if record and record.lease_remaining > timedelta(0):
        return Place.BEING_SENT
    if svix and svix.message:
        if record is None:
            return Place.UNRECORDED
        return Place.IN_SVIX if record.state is State.DELIVERED else Place.UNSETTLED
    if record and record.state is State.DELIVERED:
        return Place.MISSING if svix else Place.UNKNOWN
    if any(letter.discarded is None for letter in evidence.letters):
        return Place.PARKED
    if _given_up(evidence):
        return Place.DISCARDED
    if record is None:
        return Place.NEVER_SEEN if svix else Place.UNKNOWN
    if record.svix_message_id is not None or _untouched_for(evidence) > REDELIVERED_WITHIN:
        # A released record with a message id was in Svix once: it was acknowledged then, and
        # `reconcile --fix` has released it since.
        return Place.OVERDUE
    return Place.WAITING if record.state is State.RELEASED else Place.ABANDONED


def _given_up(evidence: Evidence) -> bool:
    """Whether the event's letters were discarded, and it did not come again since."""
    discarded = [letter.discarded_at for letter in evidence.letters if letter.discarded is not None]
    if not discarded:
        return False
    record = evidence.record
    return record is None or any(at is None or at >= record.touched_at for at in discarded)


def _untouched_for(evidence: Evidence) -> timedelta:
    """How long ago the record was written, by the clock that wrote it."""
    record = evidence.record
    return timedelta(0) if record is None else record.read_at - record.touched_at


def _since(place: Place, evidence: Evidence) -> datetime | None:
    record = evidence.record
    match place:
        case Place.BEING_SENT | Place.ABANDONED | Place.WAITING | Place.OVERDUE:
            return record.touched_at if record else None
        case Place.MISSING:
            return record.delivered_at if record else None
        case Place.PARKED:
            parked = [each.parked_at for each in evidence.letters if each.discarded is None]
            return min(filter(None, parked), default=None)
        case Place.DISCARDED:
            return max(filter(None, (each.discarded_at for each in evidence.letters)), default=None)
        case Place.IN_SVIX | Place.UNSETTLED | Place.UNRECORDED:
            message = evidence.svix and evidence.svix.message
            return message.accepted_at if message else None
        case Place.NEVER_SEEN | Place.UNKNOWN:
            return None


def _next_by(place: Place, evidence: Evidence) -> datetime | None:
    record = evidence.record
    if record is None:
        return None
    if place is Place.BEING_SENT:
        return record.read_at + record.lease_remaining
    redelivered = place.waits or (place is Place.UNSETTLED and not _unsettled_for_long(evidence))
    return record.touched_at + REDELIVERED_WITHIN if redelivered else None


def _unsettled_for_long(evidence: Evidence) -> bool:
    return _untouched_for(evidence) > REDELIVERED_WITHIN


def _remedies(place: Place, evidence: Evidence) -> tuple[Remedy, ...]:
    record = evidence.record
    age = record.age if record else timedelta(0)
    seek = (Remedy.SEEK,) if age < _IN_SUBSCRIPTION else ()
    match place:
        case Place.PARKED:
            return (Remedy.REPLAY,)
        case Place.UNSETTLED if _unsettled_for_long(evidence):
            return (Remedy.FIX,)
        case Place.MISSING:
            return (Remedy.FIX, *seek, Remedy.PUBLISH)
        case Place.OVERDUE if record and record.svix_message_id is not None:
            return (*seek, Remedy.PUBLISH)  # it was acknowledged: no dead-letter topic has it
        case Place.OVERDUE:
            kept = age < _IN_SUBSCRIPTION + _IN_DEAD_LETTER_TOPIC
            return (*((Remedy.REDRIVE,) if kept else ()), *seek, Remedy.PUBLISH)
        case _:
            return ()


def _standings(evidence: Evidence) -> list[EndpointStanding] | None:
    svix = evidence.svix
    if svix is None or svix.message is None or svix.destinations is None:
        return None
    attempts = svix.destinations.attempts
    found = []
    for endpoint in svix.destinations.endpoints:
        here = [attempt for attempt in attempts if attempt.endpoint_id == endpoint.id]
        last = max(here, key=lambda attempt: attempt.at, default=None)
        standing = (
            _untried(endpoint, svix.message, evidence) if last is None else _tried(endpoint, here)
        )
        found.append(EndpointStanding(endpoint, standing, len(here), last))
    return found


def _tried(endpoint: Endpoint, attempts: Sequence[Attempt]) -> Standing:
    statuses = {attempt.status for attempt in attempts}
    if AttemptStatus.SUCCEEDED in statuses:
        return Standing.DELIVERED
    if AttemptStatus.UNDER_WAY in statuses:
        return Standing.UNDER_WAY
    if AttemptStatus.CANCELED in statuses:
        return Standing.CANCELED
    retried = endpoint.next_attempt is not None and not endpoint.disabled and not endpoint.deleted
    return Standing.RETRYING if retried else Standing.FAILED


def _untried(endpoint: Endpoint, message: Message, evidence: Evidence) -> Standing:
    if endpoint.disabled:
        return Standing.DISABLED
    if endpoint.event_types and message.event_type not in endpoint.event_types:
        return Standing.OTHER_TYPES
    if endpoint.channels and not endpoint.channels & message.channels:
        return Standing.OTHER_CHANNELS
    if endpoint.created_at > message.accepted_at:
        return Standing.CREATED_LATER
    late = evidence.now - message.accepted_at > ATTEMPTED_WITHIN
    looked_at = evidence.first_looked_at
    late |= looked_at is not None and evidence.now - looked_at >= LOOKED_AT_TWICE
    return Standing.NEVER_SENT if late else Standing.QUEUED


def _fanout(standings: Sequence[Standing]) -> Fanout:
    for fanout, any_of in _FANOUT:
        if any(standing in any_of for standing in standings):
            return fanout
    return Fanout.NO_ENDPOINT


# The first row of which an endpoint has one of the standings: what needs a person most comes first.
_FANOUT = (
    (Fanout.NEVER_SENT_ON, {Standing.NEVER_SENT}),
    (Fanout.FAILING, {Standing.RETRYING, Standing.FAILED}),
    (Fanout.PENDING, {Standing.UNDER_WAY, Standing.QUEUED}),
    (Fanout.DELIVERED, {Standing.DELIVERED}),
)
