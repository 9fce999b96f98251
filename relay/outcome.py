"""What Svix may answer, and what can become of a delivery.

Values only: nothing here decides. `sender.py` classifies into an `Answer`, `delivery.py` turns
answers into a `Result`, `main.py` and `logs.py` show it.
"""

from dataclasses import dataclass
from enum import Enum, StrEnum


class Call(Enum):
    """What was asked of Svix."""

    SEND = "send"
    """To create the event's message."""
    ASK = "ask"
    """Whether it has the event's message."""


class Verdict(Enum):
    """What one answer of Svix, or its absence, means for the event."""

    ACCEPTED = "accepted"
    """The message is in Svix: it took what was sent, or found what was asked for."""
    BROKEN_OFF = "broken_off"
    """A 2xx whose body broke off: Svix has probably accepted the message."""
    RATE_LIMITED = "rate_limited"
    """429: later, and slower."""
    CONFLICT = "conflict"
    """409: the event is there already, or two first events race to create one application."""
    MISSING = "missing"
    """Asked for the message, Svix has none."""
    REJECTED = "rejected"
    """Svix will never take this event as things are."""
    UNAVAILABLE = "unavailable"
    """No usable answer: the event may or may not have been accepted."""
    MISCONFIGURED = "misconfigured"
    """Our token, URL or account is at fault: no event passes until someone corrects it."""


_TAKEN = {Verdict.ACCEPTED, Verdict.BROKEN_OFF, Verdict.CONFLICT, Verdict.REJECTED}


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of Svix, classified.

    Of its body only `code` and the names of the offending fields are kept: details may echo the
    payload.
    """

    call: Call
    verdict: Verdict
    status: int | None = None
    code: str | None = None
    locs: tuple[str, ...] = ()
    message_id: str | None = None
    retry_after: float | None = None
    """Seconds, where a 429 or 503 said so."""
    failure: str | None = None
    """Why there is no usable answer, such as `ConnectError` or `no answer in 10 s`."""

    @property
    def taken(self) -> bool:
        """Whether Svix worked on an event that was sent, whatever it made of it.

        An unknown application counts: Svix is there, and has read the request.
        """
        return self.call is Call.SEND and (
            self.verdict in _TAKEN or self.code in {"not_found", "unknown_application"}
        )

    @property
    def failed(self) -> bool:
        """Whether this counts towards an outage."""
        return self.verdict is Verdict.MISCONFIGURED or (
            self.verdict is Verdict.UNAVAILABLE and not self.taken
        )

    def __str__(self) -> str:
        """For people: `no answer in 10 s`, `422 body.payload`."""
        said = (str(self.status) if self.status else None, self.code, *self.locs, self.failure)
        return " ".join(filter(None, said)) or "no answer"


class Outcome(StrEnum):
    """What became of a delivery; the value is the word in answers, logs and metrics."""

    DELIVERED = "delivered"
    DUPLICATE = "duplicate"
    IN_PROGRESS = "in_progress"
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"
    LEDGER_UNAVAILABLE = "ledger_unavailable"
    MISCONFIGURED = "misconfigured"
    INCOMPLETE = "incomplete"
    CONFLICT = "conflict"
    REJECTED = "rejected"
    MALFORMED = "malformed"


class Remark(StrEnum):
    """What an operator should know of an event although it was acknowledged."""

    FANOUT_UNCONFIRMED = "fanout_unconfirmed"
    """Svix has the message, but was not seen to accept it: it may never send it on."""
    PAYLOAD_CHANGED = "payload_changed"
    """The id was delivered before with another payload: a publisher is at fault."""


# The HTTP status, and the severity in Cloud Logging. Pub/Sub takes a 2xx as an ack and all else as
# a nack. The last three are parked where Pub/Sub brought them, and then answered 200.
_TABLE = {
    Outcome.DELIVERED: (200, "INFO"),
    Outcome.DUPLICATE: (200, "INFO"),
    Outcome.IN_PROGRESS: (409, "INFO"),
    Outcome.RATE_LIMITED: (429, "WARNING"),
    Outcome.UNAVAILABLE: (500, "WARNING"),
    Outcome.LEDGER_UNAVAILABLE: (500, "ERROR"),
    Outcome.MISCONFIGURED: (500, "CRITICAL"),
    Outcome.INCOMPLETE: (408, "WARNING"),
    Outcome.CONFLICT: (409, "ERROR"),
    Outcome.REJECTED: (422, "ERROR"),
    Outcome.MALFORMED: (400, "ERROR"),
}
PARKED_OUTCOMES = frozenset({Outcome.CONFLICT, Outcome.REJECTED, Outcome.MALFORMED})

TOO_LARGE, MEDIA_TYPE = "too_large", "media_type"
# What was posted by hand is answered with HTTP's own word where it has a closer one.
_BY_HAND = {TOO_LARGE: 413, MEDIA_TYPE: 415}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of one delivery: everything its answer and its log line say."""

    outcome: Outcome
    detail: str | None = None
    """For people: what the last failure was."""
    remark: Remark | None = None
    code: str | None = None
    """A machine word for the reason, such as `too_large` or `unknown_application`."""
    retry_after: float | None = None
    """Seconds."""
    svix_status: int | None = None
    svix_code: str | None = None
    svix_message_id: str | None = None
    attempts: int | None = None
    """How many claims this event has had, this one included."""
    waited: float = 0.0
    """Seconds spent waiting for turns."""
    dead_letter: str | None = None
    """The id it was parked under; a parked push is acknowledged."""

    @property
    def acknowledges(self) -> bool:
        """Whether Pub/Sub is to forget the message."""
        return self.status == 200  # noqa: PLR2004 - HTTP's own number

    @property
    def status(self) -> int:
        """The HTTP status to answer with."""
        if self.dead_letter is not None:
            return 200
        return _BY_HAND.get(self.code or "", _TABLE[self.outcome][0])

    @property
    def severity(self) -> str:
        """The severity to log with."""
        return "WARNING" if self.remark else _TABLE[self.outcome][1]
