"""Decides where one event is, from all that is known about it. Does no I/O.

The answer has two parts:

    Place    how far the event came on its way into Svix, which is the relay's task
    Fanout   how far its message came on its way to the customer's endpoints, which is Svix's task

`inspect` shows the answer for one event, `reconcile` counts the answers for many. Both call
`locate`, so from the same evidence they draw the same conclusion.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from relay.ledger import DeadLetter, Record, State

REDELIVERED_WITHIN = timedelta(hours=1)
"""An undelivered event is overdue this long after its record's last write. Its next delivery ends
within 20 minutes: the retry policy may wait 10, push back-off 1, and the delivery itself 9. An hour
is three times that."""

ATTEMPTED_WITHIN = timedelta(hours=1)
"""Svix may make the first attempt up to this long after it accepted a message. Usually it takes
seconds."""

LOOKED_AT_TWICE = timedelta(minutes=5)
"""If two looks this far apart find no attempt, Svix has forgotten the message, even if it accepted
the message less than `ATTEMPTED_WITHIN` ago."""

_IN_SUBSCRIPTION = timedelta(days=7)
_IN_DEAD_LETTER_TOPIC = timedelta(days=31)
# How long Pub/Sub keeps an event in each; deploy.sh sets these. An event moves from the
# subscription to the dead-letter topic, so an event there may be as old as the sum of both.


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

    Only the host of its URL is kept, because the path is often a secret.
    """

    id: str
    host: str
    created_at: datetime
    disabled: bool = False
    deleted: bool = False
    event_types: frozenset[str] = frozenset()
    """The types that it wants; empty: all."""
    channels: frozenset[str] = frozenset()
    """The channels that it wants; empty: all."""
    next_attempt: datetime | None = None
    """When Svix will retry the message at this endpoint."""


class AttemptStatus(StrEnum):
    """The status of an attempt."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    UNDER_WAY = "under_way"
    CANCELED = "canceled"
    """The endpoint's transformation, which the customer has set up, canceled the attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt of Svix to send a message to an endpoint."""

    endpoint_id: str
    host: str
    status: AttemptStatus
    http: int | None
    """The HTTP status that the endpoint answered; None if it did not answer."""
    at: datetime


@dataclass(frozen=True, slots=True)
class Destinations:
    """The endpoints of the application, and the attempts for one message."""

    endpoints: Sequence[Endpoint]
    attempts: Sequence[Attempt]


@dataclass(frozen=True, slots=True)
class SvixAnswer:
    """What Svix says about one event."""

    message: Message | None
    destinations: Destinations | None = None
    """None: Svix was not asked for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that is known about one event at one time."""

    now: datetime
    record: Record | None = None
    letters: Sequence[DeadLetter] = ()
    svix: SvixAnswer | None = None
    """None: Svix was not asked, or did not answer."""
    first_looked_at: datetime | None = None
    """When an earlier look found an endpoint without an attempt; None if there was no such look."""


# -- where it is


class Place(StrEnum):
    """How far an event came on its way into Svix. Scripts read the value."""

    NEVER_SEEN = "never_seen"
    """The event has no record, no dead letter and no message."""
    BEING_SENT = "being_sent"
    """A delivery holds the claim."""
    ABANDONED = "abandoned"
    """The delivery that held the claim died. The redelivery has not come yet."""
    WAITING = "waiting"
    """The claim was released. Pub/Sub will redeliver the event."""
    OVERDUE = "overdue"
    """The event is not sent, and waiting does not help. Its redelivery should have come by now. Or
    it was MISSING, and `reconcile --fix` has released it: Pub/Sub does not redeliver it."""
    PARKED = "parked"
    """The event is stored as a dead letter."""
    DISCARDED = "discarded"
    """An operator discarded the event's dead letter."""
    MISSING = "missing"
    """The event is recorded as delivered, but Svix does not have it."""
    UNSETTLED = "unsettled"
    """Svix has the event, but it is not recorded as delivered."""
    UNRECORDED = "unrecorded"
    """Svix has the event, but there is no record of it."""
    IN_SVIX = "in_svix"
    """Svix has the event, and it is recorded as delivered."""
    UNKNOWN = "unknown"
    """Svix was not asked or did not answer, and only Svix knows where the event is."""

    @property
    def in_svix(self) -> bool:
        """Whether Svix has the event."""
        return self in {Place.IN_SVIX, Place.UNSETTLED, Place.UNRECORDED}

    @property
    def waits(self) -> bool:
        """Whether the event will be sent soon without anyone's help."""
        return self in {Place.BEING_SENT, Place.ABANDONED, Place.WAITING}

    @property
    def stuck(self) -> bool:
        """Whether the customer does not get the event until a person acts."""
        return self in {Place.OVERDUE, Place.PARKED, Place.MISSING}


class Fanout(StrEnum):
    """How far a message came on its way to the customer's endpoints."""

    NO_ENDPOINT = "no_endpoint"
    """No endpoint wants the message: there is none, or each is disabled, wants other events, was
    created later or canceled it."""
    NEVER_SENT_ON = "never_sent_on"
    """An endpoint wants the message, but Svix has never tried to send the message to it."""
    FAILING = "failing"
    """Svix has tried to send the message to an endpoint, and failed so far."""
    PENDING = "pending"
    """An attempt is under way or about to begin."""
    DELIVERED = "delivered"
    """Every endpoint that wants the message has it."""


class Standing(StrEnum):
    """The status of a message at one endpoint."""

    DELIVERED = "delivered"
    UNDER_WAY = "under_way"
    RETRYING = "retrying"
    FAILED = "failed"
    """All attempts failed, and Svix makes no more by itself."""
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
    """Run `reconcile --fix`."""
    REDRIVE = "redrive"
    """Push the messages of the dead-letter topic to the function."""
    SEEK = "seek"
    """Seek the subscription back, so that Pub/Sub redelivers what it keeps."""
    PUBLISH = "publish"
    """Publish the event again."""


@dataclass(frozen=True, slots=True)
class EndpointStanding:
    """The status of a message at one endpoint, and the attempts that show it."""

    endpoint: Endpoint
    standing: Standing
    attempts: int = 0
    last: Attempt | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Whereabouts:
    """Where an event is."""

    place: Place
    since: datetime | None
    """Since when the event is at this place; None if that is not known."""
    attempts: int
    """How often the event was claimed."""
    next_by: datetime | None = None
    """The latest time of the next step that happens by itself; None if there is none."""
    remedies: tuple[Remedy, ...] = ()
    """What an operator can do, the best first."""
    fanout: Fanout | None = None
    """None: there is no message, or Svix was not asked for its attempts."""
    standings: tuple[EndpointStanding, ...] = field(default=())


def locate(evidence: Evidence) -> Whereabouts:
    """Decide where the event is."""
    place = _place(evidence)
    standings = _standings(evidence)
    fanout = None if standings is None else _fanout([each.standing for each in standings])
    remedies = list(_remedies(place, evidence))
    if fanout is Fanout.NEVER_SENT_ON and Remedy.FIX not in remedies:
        # `reconcile --fix` repairs only events that have a record. Others must be published again.
        remedies.append(Remedy.FIX if evidence.record else Remedy.PUBLISH)
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
    if record and record.lease_remaining > 0:
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
        # If an undelivered record has a message id, `reconcile --fix` has released it. The event
        # was in Svix and was acknowledged, so Pub/Sub will not redeliver it.
        return Place.OVERDUE
    return Place.WAITING if record.state is State.RELEASED else Place.ABANDONED


def _given_up(evidence: Evidence) -> bool:
    """Whether a letter of the event was discarded, and no delivery claimed the event since."""
    discarded = [letter.discarded_at for letter in evidence.letters if letter.discarded is not None]
    if not discarded:
        return False
    record = evidence.record
    return record is None or any(at is None or at >= record.touched_at for at in discarded)


def _untouched_for(evidence: Evidence) -> timedelta:
    """How long ago the record was last written, by the ledger's clock."""
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
        return record.touched_at + timedelta(seconds=record.lease)
    redelivered = place.waits or (place is Place.UNSETTLED and not _unsettled_for_long(evidence))
    return record.touched_at + REDELIVERED_WITHIN if redelivered else None


def _unsettled_for_long(evidence: Evidence) -> bool:
    return _untouched_for(evidence) > REDELIVERED_WITHIN


def _remedies(place: Place, evidence: Evidence) -> tuple[Remedy, ...]:
    record = evidence.record
    age = timedelta(seconds=record.age if record else 0.0)
    seek = (Remedy.SEEK,) if age < _IN_SUBSCRIPTION else ()
    match place:
        case Place.PARKED:
            return (Remedy.REPLAY,)
        case Place.UNSETTLED if _unsettled_for_long(evidence):
            return (Remedy.FIX,)
        case Place.MISSING:
            return (Remedy.FIX, *seek, Remedy.PUBLISH)
        case Place.OVERDUE if record and record.svix_message_id is not None:
            return (*seek, Remedy.PUBLISH)  # acknowledged, so not in the dead-letter topic
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


# Rows are tried in order, most urgent first. A row applies if an endpoint's standing is in it.
_FANOUT = (
    (Fanout.NEVER_SENT_ON, {Standing.NEVER_SENT}),
    (Fanout.FAILING, {Standing.RETRYING, Standing.FAILED}),
    (Fanout.PENDING, {Standing.UNDER_WAY, Standing.QUEUED}),
    (Fanout.DELIVERED, {Standing.DELIVERED}),
)
