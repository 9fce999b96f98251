"""Evidence about one event, at a fixed time, for the tests of `whereabouts.py`."""

from datetime import UTC, datetime, timedelta

from relay.ledger import DeadLetter, Record, State
from relay.operate.whereabouts import Attempt, AttemptStatus, Endpoint, Message

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SECOND, MINUTE, HOUR, DAY = (
    timedelta(seconds=1),
    timedelta(minutes=1),
    timedelta(hours=1),
    timedelta(days=1),
)


def record(
    state: State,
    *,
    untouched: timedelta = MINUTE,
    age: timedelta = 2 * MINUTE,
    message_id: str | None = None,
    attempts: int = 1,
) -> Record:
    """The event's record: first claimed `age` ago, and last written `untouched` ago."""
    delivered = state is State.DELIVERED
    return Record(
        project="acme",
        event_id="evt_1",
        event_type="user.created",
        state=state,
        claim="token",
        lease=30.0,
        attempts=attempts,
        payload_sha256="0" * 64,
        first_claimed_at=NOW - max(age, untouched),
        touched_at=NOW - untouched,
        read_at=NOW,
        delivered_at=NOW - untouched if delivered else None,
        svix_message_id="msg_1" if delivered else message_id,
        fanout_confirmed=True if delivered else None,
    )


def letter(
    *, discarded: timedelta | None = None, parked: timedelta = MINUTE, reason: str = "rejected"
) -> DeadLetter:
    """The event's dead letter: parked `parked` ago, and discarded `discarded` ago unless None."""
    return DeadLetter(
        id="0" * 64,
        data=b"{}",
        reason=reason,
        detail="Svix: 413",
        project="acme",
        event_id="evt_1",
        parked_at=NOW - parked,
        discarded=None if discarded is None else "a test event",
        discarded_at=None if discarded is None else NOW - discarded,
    )


def message(accepted: timedelta = MINUTE) -> Message:
    """The event's message in Svix, accepted `accepted` ago."""
    return Message(
        id="msg_1", event_id="evt_1", event_type="user.created", accepted_at=NOW - accepted
    )


def endpoint(
    name: str = "ep_1",
    *,
    disabled: bool = False,
    event_types: frozenset[str] = frozenset(),
    channels: frozenset[str] = frozenset(),
    created: timedelta = DAY,
    next_attempt: datetime | None = None,
) -> Endpoint:
    """One of the customer's endpoints, created `created` ago."""
    return Endpoint(
        id=name,
        host="hooks.acme.example",
        created_at=NOW - created,
        disabled=disabled,
        event_types=event_types,
        channels=channels,
        next_attempt=next_attempt,
    )


def attempt(
    status: AttemptStatus, name: str = "ep_1", http: int | None = 200, ago: timedelta = MINUTE
) -> Attempt:
    """One attempt at an endpoint."""
    return Attempt(
        endpoint_id=name, host="hooks.acme.example", status=status, http=http, at=NOW - ago
    )
