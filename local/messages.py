"""The messages that were published, and their pushes. Times are seconds since 1970."""

import base64
import json
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

SUBSCRIPTION = "projects/local/subscriptions/webhook-relay"
_ACKS = {102, 200, 201, 202, 204}  # https://cloud.google.com/pubsub/docs/push#receive_push


@dataclass(slots=True)
class Push:
    """One push of a message. Times are seconds since 1970."""

    instance: int | None
    """None: there was no instance that could take it."""
    at: float
    answered_at: float | None = None
    status: int | None = None
    """None: not answered yet, or the connection broke."""

    @property
    def is_ack(self) -> bool:
        """Whether Pub/Sub counts the answer as an acknowledgement."""
        return self.status in _ACKS


@dataclass(slots=True)
class Message:
    """One published message. `project` and `event_id` are None if `data` is not an event."""

    number: int
    data: bytes = field(repr=False)
    project: str | None = None
    event_id: str | None = None
    published_at: float = field(default_factory=time.time)
    pushes: list[Push] = field(default_factory=list)
    is_dead_letter: bool = False
    """Whether Pub/Sub has given up and moved it to the dead-letter topic."""

    @property
    def acked_at(self) -> float | None:
        """When it was acknowledged; None if it was not."""
        return next((push.answered_at for push in self.pushes if push.is_ack), None)

    def body(self) -> bytes:
        """The body of a push, as Pub/Sub wraps the message."""
        published = datetime.fromtimestamp(self.published_at, UTC).isoformat()
        message = {
            "data": base64.b64encode(self.data).decode(),
            "messageId": str(self.number),
            "publishTime": published.replace("+00:00", "Z"),
        }
        push = {"message": message, "subscription": SUBSCRIPTION}
        return json.dumps({**push, "deliveryAttempt": len(self.pushes)}).encode()
