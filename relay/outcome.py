"""What Svix may answer, and what can become of a delivery.

Values only: nothing here decides. `sender.py` classifies into an `Answer`, `delivery.py` turns
answers into a `Result`, `main.py` and `logs.py` show it.
"""

from dataclasses import dataclass
from enum import Enum, StrEnum


class Verdict(Enum):
    """What one answer of Svix, or its absence, means for the event."""

    ACCEPTED = "accepted"
    """The message is in Svix: a 2xx, or `message.get` found it."""
    RATE_LIMITED = "rate_limited"
    """429: later, and slower."""
    CONFLICT = "conflict"
    """409: the event is there already, or two first events race to create one application."""
    NOT_FOUND = "not_found"
    """The API's own 404: no such application, or (asked for a message) no such message."""
    MISCONFIGURED = "misconfigured"
    """Our token, URL or account is at fault: no event will pass until someone mends it."""
    REJECTED = "rejected"
    """Svix will never take this event."""
    UNAVAILABLE = "unavailable"
    """No usable answer: the event may or may not have been accepted."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of Svix, classified.

    Of its body only `code` and the names of the offending fields are kept: details may echo the
    payload.
    """

    verdict: Verdict
    status: int | None = None
    code: str | None = None
    locs: tuple[str, ...] = ()
    message_id: str | None = None
    retry_after: float | None = None
    """Seconds, where a 429 or 503 said so."""


class Outcome(StrEnum):
    """What became of a delivery; the value is the word in answers, logs and metrics."""

    DELIVERED = "delivered"
    DUPLICATE = "duplicate"
    IN_PROGRESS = "in_progress"
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"
    MISCONFIGURED = "misconfigured"
    REJECTED = "rejected"
    MALFORMED = "malformed"

    @property
    def status(self) -> int:
        """The HTTP status; Pub/Sub takes 2xx as an ack and all else as a nack."""
        return _TABLE[self][0]

    @property
    def severity(self) -> str:
        """The severity Cloud Logging files it under."""
        return _TABLE[self][1]


# Pushes that are rejected or malformed are parked and answered 200 instead: see Result.status.
_TABLE = {
    Outcome.DELIVERED: (200, "INFO"),
    Outcome.DUPLICATE: (200, "INFO"),
    Outcome.IN_PROGRESS: (409, "INFO"),
    Outcome.RATE_LIMITED: (429, "WARNING"),
    Outcome.UNAVAILABLE: (500, "WARNING"),
    Outcome.MISCONFIGURED: (500, "CRITICAL"),
    Outcome.REJECTED: (422, "ERROR"),
    Outcome.MALFORMED: (400, "ERROR"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of one delivery: everything its answer and its log line say.

    `status` and `severity` override the outcome's own where the case is special: 413 and 415 of
    the malformed, a ledger that is down (ERROR), a duplicate with another payload (WARNING).
    """

    outcome: Outcome
    detail: str | None = None
    status_override: int | None = None
    severity_override: str | None = None
    retry_after: float | None = None
    svix_status: int | None = None
    svix_code: str | None = None
    svix_message_id: str | None = None
    attempts: int | None = None
    """How many claims this event has had, this one included."""
    waited: float = 0.0
    """Seconds spent waiting for a turn to send."""
    dead_letter: str | None = None
    """The id it was parked under; a parked push is acknowledged."""

    @property
    def status(self) -> int:
        """The HTTP status to answer with."""
        if self.dead_letter is not None:
            return 200
        return self.status_override or self.outcome.status

    @property
    def severity(self) -> str:
        """The severity to log with."""
        return self.severity_override or self.outcome.severity
