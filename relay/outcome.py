"""The values for Svix's answers and for the results of deliveries.

`sender.py` classifies what Svix answered as an `Answer`. `delivery.py` turns answers into a
`Result`. `main.py` and `logs.py` show the result.
"""

from dataclasses import dataclass
from enum import Enum, StrEnum


class Call(Enum):
    """The kinds of call to Svix."""

    SEND = "send"
    """Creates the event's message."""
    ASK = "ask"
    """Asks whether Svix has the event's message."""


class Verdict(Enum):
    """What one answer of Svix, or the lack of an answer, means for the event."""

    ACCEPTED = "accepted"
    """The message is in Svix."""
    BROKEN_OFF = "broken_off"
    """Svix answered 2xx, but the body was cut off. Svix has probably accepted the message."""
    RATE_LIMITED = "rate_limited"
    """Svix answered 429."""
    CONFLICT = "conflict"
    """Svix answered 409: it has the event already, or holds a lock on the idempotency key, or two
    events race to create an application."""
    MISSING = "missing"
    """Svix answered that it does not have the message."""
    REJECTED = "rejected"
    """Svix will reject this event every time, until someone changes the event or Svix."""
    UNAVAILABLE = "unavailable"
    """The answer does not decide the event's outcome, or there is none. Svix may or may not have
    accepted the event."""
    MISCONFIGURED = "misconfigured"
    """Our token, URL or account is wrong. Every event fails until someone corrects it."""


_TAKEN = {Verdict.ACCEPTED, Verdict.BROKEN_OFF, Verdict.CONFLICT, Verdict.REJECTED}


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of Svix, classified.

    Of the body, only the message id, `code` and the names of the faulty fields are kept, because
    the other details may quote the payload.
    """

    call: Call
    verdict: Verdict
    status: int | None = None
    code: str | None = None
    locs: tuple[str, ...] = ()
    """The fields that Svix found faulty, such as `body.payload`; Svix calls each a `loc`."""
    message_id: str | None = None
    retry_after: float | None = None
    """Seconds, from the `Retry-After` header."""
    failure: str | None = None
    """Why there is no usable answer, such as `ConnectError` or `no answer in 10 s`."""

    @property
    def taken(self) -> bool:
        """Whether the answer shows that Svix processes sends.

        A conflict, a rejection and an unknown application show that too.
        """
        return self.call is Call.SEND and (
            self.verdict in _TAKEN or self.code in {"not_found", "unknown_application"}
        )

    @property
    def failed(self) -> bool:
        """Whether the answer counts towards an outage."""
        return self.verdict is Verdict.MISCONFIGURED or (
            self.verdict is Verdict.UNAVAILABLE and not self.taken
        )

    def __str__(self) -> str:
        """For people: `no answer in 10 s`, `422 body.payload`."""
        words = (str(self.status) if self.status else None, self.code, *self.locs, self.failure)
        return " ".join(filter(None, words)) or "no answer"


class Outcome(StrEnum):
    """How a delivery ended. The value is the word in answers, logs and metrics."""

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
    """Something an operator should know about an acknowledged event."""

    FANOUT_UNCONFIRMED = "fanout_unconfirmed"
    """Svix has the message, but we did not see Svix accept it. Svix may not have queued it for the
    customer's endpoints."""
    PAYLOAD_CHANGED = "payload_changed"
    """The event was delivered before, and this payload is not the one that was claimed first. The
    publisher reused an id."""


# Each outcome's HTTP status, and its severity in Cloud Logging. Pub/Sub acks on 200 and nacks on
# the others. A push that ends with one of `PARKED_OUTCOMES` is parked and answered 200.
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
# HTTP has a status of its own for each of these two reasons.
_STATUS_OF_CODE = {TOO_LARGE: 413, MEDIA_TYPE: 415}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How one delivery ended: what its HTTP answer and its log line say."""

    outcome: Outcome
    detail: str | None = None
    """What failed last, in words for people."""
    remark: Remark | None = None
    code: str | None = None
    """A machine-readable reason, such as `too_large` or `unknown_application`."""
    retry_after: float | None = None
    """Seconds."""
    svix_status: int | None = None
    svix_code: str | None = None
    svix_message_id: str | None = None
    attempts: int | None = None
    """How many claims this event has had, including this delivery's."""
    waited: float = 0.0
    """Seconds spent waiting for turns and in back-offs."""
    dead_letter: str | None = None
    """The id of the dead letter, if the push was parked. A parked push is acknowledged."""

    @property
    def acknowledges(self) -> bool:
        """Whether the answer is an ack for Pub/Sub."""
        return self.status == 200  # noqa: PLR2004 - HTTP's own number

    @property
    def status(self) -> int:
        """The HTTP status to answer with."""
        if self.dead_letter is not None:
            return 200
        return _STATUS_OF_CODE.get(self.code or "", _TABLE[self.outcome][0])

    @property
    def severity(self) -> str:
        """The severity to log with."""
        return "WARNING" if self.remark else _TABLE[self.outcome][1]
