"""What the simulator holds: applications, their messages and endpoints, attempts, event types.

Knows no HTTP. Raises `wire.Refusal` for what Svix would refuse.
"""

import bisect
import json
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from local.svix import ids, wire

_EVENT_ID_LIFETIME = timedelta(hours=24)  # of the hosted Svix; the open-source one never forgets


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """One message as Svix holds it."""

    app: str
    """The application's uid."""
    id: str
    event_id: str | None
    event_type: str
    text: str = field(repr=False)
    """The payload's JSON text, as it goes to the endpoints."""
    channels: frozenset[str] | None
    tags: tuple[str, ...]
    received_at: datetime

    @property
    def payload(self) -> dict[str, Any]:
        """The parsed payload."""
        value: dict[str, Any] = json.loads(self.text)
        return value


@dataclass(slots=True)
class Endpoint:
    """A customer's endpoint for an application's messages."""

    id: str
    secret: str = field(repr=False)
    created_at: datetime
    url: str = ""
    event_types: frozenset[str] | None = None
    channels: frozenset[str] | None = None
    disabled: bool = False
    is_deleted: bool = False
    """A deleted endpoint is kept, because its attempts are still listed."""
    description: str = ""

    @property
    def is_live(self) -> bool:
        """Whether anything may be sent to it."""
        return not (self.disabled or self.is_deleted)

    def takes(self, message: StoredMessage) -> bool:
        """Whether a message is sent to it. An endpoint without types or channels takes all."""
        return (
            self.is_live
            and (self.event_types is None or message.event_type in self.event_types)
            and (self.channels is None or bool(self.channels & (message.channels or frozenset())))
        )


def is_success(code: int) -> bool:
    """Whether a status says that an endpoint has taken a message."""
    return 200 <= code < 300  # noqa: PLR2004 - 2xx


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt to send a message to an endpoint."""

    id: str
    message_id: str
    endpoint_id: str
    url: str
    code: int
    """The endpoint's status; 0 if it did not answer."""
    response: str
    duration: float
    """Seconds."""
    is_manual: bool
    at: datetime
    next_at: datetime | None

    @property
    def succeeded(self) -> bool:
        """Whether the endpoint took the message."""
        return is_success(self.code)


@dataclass(slots=True)
class Application:
    """An application of Svix: one project of the platform."""

    id: str
    uid: str | None
    name: str
    created_at: datetime
    messages: list[str] = field(default_factory=list)
    """Ids, ascending."""
    endpoints: dict[str, Endpoint] = field(default_factory=dict)
    by_id: dict[str, StoredMessage] = field(default_factory=dict)
    """Each message by its id, and the latest message by each event id."""


class Store:
    """Everything in one Svix environment. The caller passes in all times."""

    def __init__(self) -> None:
        self.messages: list[StoredMessage] = []
        """Every message that was ever accepted, in the order of acceptance."""
        self.event_types: dict[str, datetime] = {}
        self._applications: dict[str, Application] = {}
        self._applications_by_uid: dict[str, Application] = {}
        self._attempts: dict[str, Attempt] = {}
        self._attempts_of: dict[tuple[str, str], list[str]] = defaultdict(list)
        """Ids, ascending, under ("message", id) and ("endpoint", id)."""

    def clear(self) -> None:
        """Remove everything."""
        self.messages.clear()
        self.event_types.clear()
        self._applications.clear()
        self._applications_by_uid.clear()
        self._attempts.clear()
        self._attempts_of.clear()

    # -- applications

    @property
    def applications(self) -> list[str]:
        """The ids of all applications, ascending."""
        return sorted(self._applications)

    def find_application(self, name: str) -> Application | None:
        """The application with this id or uid, or None."""
        return self._applications_by_uid.get(name) or self._applications.get(name)

    def application(self, name: str) -> Application:
        """The application with this id or uid. Refuses an unknown one."""
        if application := self.find_application(name):
            return application
        raise wire.not_found()

    def create_application(self, uid: str | None, name: str, now: datetime) -> Application:
        """Create an application. Refuses a uid that is taken."""
        if uid in self._applications_by_uid:
            raise wire.conflict("An application with that id or uid already exists")
        application = Application(ids.new("app_", now), uid, name, now)
        self._applications[application.id] = application
        if uid is not None:
            self._applications_by_uid[uid] = application
        return application

    def delete_application(self, name: str) -> None:
        """Delete an application. Its uid is free again, and its messages are no longer found."""
        application = self.application(name)
        del self._applications[application.id]
        if application.uid is not None:
            del self._applications_by_uid[application.uid]

    # -- messages

    def add_message(
        self, application: Application, new: wire.NewMessage, *, for_ever: bool, now: datetime
    ) -> StoredMessage:
        """Store a message.

        Refuses an event id that was used within a day; with `for_ever`, one that was ever used.
        """
        known = application.by_id.get(new.event_id) if new.event_id else None
        if known and (for_ever or now - known.received_at < _EVENT_ID_LIFETIME):
            raise wire.conflict()
        message = StoredMessage(
            application.uid or application.id,
            ids.new("msg_", now),
            new.event_id,
            new.event_type,
            new.text,
            new.channels,
            new.tags,
            now,
        )
        self.messages.append(message)
        bisect.insort(application.messages, message.id)
        application.by_id[message.id] = message
        if new.event_id is not None:
            application.by_id[new.event_id] = message
        return message

    def message(self, app: str, name: str) -> StoredMessage:
        """The message with this id or event id. Refuses an unknown one."""
        if message := self.application(app).by_id.get(name):
            return message
        raise wire.not_found()

    # -- endpoints

    def change_endpoint(self, endpoint: Endpoint, fields: dict[str, Any]) -> None:
        """Set some of its fields. Refuses event types that are not in the catalogue."""
        missing = sorted((fields.get("event_types") or frozenset()) - self.event_types.keys())
        if missing:
            message = f"The following event types don't exist: {', '.join(missing)}"
            raise wire.invalid("eventTypes", message=message)
        for name, value in fields.items():
            setattr(endpoint, name, value)

    def endpoint(self, app: str, name: str) -> Endpoint:
        """The endpoint with this id. Refuses an unknown one."""
        endpoint = self.application(app).endpoints.get(name)
        if endpoint and not endpoint.is_deleted:
            return endpoint
        raise wire.not_found()

    # -- attempts

    def add_attempt(self, attempt: Attempt) -> None:
        """Store an attempt."""
        self._attempts[attempt.id] = attempt
        bisect.insort(self._attempts_of["message", attempt.message_id], attempt.id)
        bisect.insort(self._attempts_of["endpoint", attempt.endpoint_id], attempt.id)

    def attempt(self, attempt_id: str) -> Attempt:
        """The attempt with this id. Raises KeyError if there is none."""
        return self._attempts[attempt_id]

    def attempts_of_message(self, message_id: str) -> list[str]:
        """The ids of a message's attempts, ascending."""
        return self._attempts_of["message", message_id]

    def attempts_at_endpoint(self, endpoint_id: str) -> list[str]:
        """The ids of the attempts at an endpoint, ascending."""
        return self._attempts_of["endpoint", endpoint_id]

    def last_attempts(self, message_id: str) -> dict[str, Attempt]:
        """A message's latest attempt at each endpoint, by the endpoint's id."""
        attempts = map(self.attempt, self.attempts_of_message(message_id))
        return {attempt.endpoint_id: attempt for attempt in attempts}
