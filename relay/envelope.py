"""From a request's body and headers to an Event: pure, and the only place that knows the bodies.

Three bodies are told apart by their structure: Pub/Sub's wrapped push, its unwrapped push, and a
bare event posted by hand. What cannot be carried to Svix faithfully is refused here, never edited.

Sources: https://cloud.google.com/pubsub/docs/push and
https://cloud.google.com/pubsub/docs/payload-unwrapping
"""

import base64
import binascii
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NoReturn

BODY_LIMIT = 2 * 1024 * 1024
"""Bytes of body that are read at most. Svix takes a payload of 1 MiB, and base64 adds a third."""

# Svix's own rule for application uids, event types and event ids (https://api.svix.com/docs). It
# is a security boundary too: the SDK puts the application into the URL as it is.
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,256}")
_RESERVED_PREFIX = {"id": "msg_", "project": "app_"}

_METADATA_LIMIT = 1024  # characters; Pub/Sub's own message ids and subscription names are shorter


@dataclass(frozen=True, slots=True)
class Source:
    """How an event came here. All of it is optional, even in a push."""

    pushed: bool = False
    """Whether Pub/Sub brought it, which takes a 2xx as an ack; else it was posted by hand."""
    data: bytes = field(default=b"", repr=False)
    """The event's bytes; the whole body where no event could be taken out of it."""
    message_id: str | None = None
    subscription: str | None = None
    published_at: datetime | None = None
    delivery_attempt: int | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Event:
    """One event of the platform. Its project is the Svix application: the tenant boundary."""

    id: str
    type: str
    project: str
    payload: dict[str, Any] = field(repr=False)
    """The whole event, as it came."""
    payload_sha256: str
    """Of the canonical JSON, so that an id seen again with another payload is noticed."""
    source: Source


class Malformed(Exception):
    """A body that no event can be taken from; its text never repeats the body's.

    `status` is what a request made by hand is answered: 400, 413 or 415.
    """

    def __init__(self, detail: str, source: Source, status: int = 400) -> None:
        super().__init__(detail)
        self.detail = detail
        self.source = source
        self.status = status


def read(body: bytes, headers: Mapping[str, str]) -> Event:
    """The event in a request's body. `headers` has lower-case names.

    Raises `Malformed` for every body that is not an event.
    """
    source = Source(data=body)
    if message_id := headers.get("x-goog-pubsub-message-id"):
        source = Source(
            pushed=True,
            data=body,
            message_id=_metadata(message_id),
            subscription=_metadata(headers.get("x-goog-pubsub-subscription-name")),
            published_at=_time(headers.get("x-goog-pubsub-publish-time")),
        )
    elif headers.get("content-encoding", "identity").lower() != "identity":
        raise Malformed("compressed bodies are not taken: send plain JSON", source, status=415)

    try:
        value = _parse(body)
    except ValueError as fault:
        _check_content_type(source, headers)
        raise Malformed(f"the body is not JSON that can be carried: {fault}", source) from None
    if isinstance(value, dict) and isinstance(value.get("message"), dict) and "id" not in value:
        source, value = _unwrap(value, body)
    else:
        _check_content_type(source, headers)
    return _event(value, source)


def _unwrap(push: dict[str, Any], body: bytes) -> tuple[Source, Any]:
    message = push["message"]
    attempt = push.get("deliveryAttempt")
    attributes = message.get("attributes")

    def source(data: bytes) -> Source:
        return Source(
            pushed=True,
            data=data,
            message_id=_metadata(message.get("messageId") or message.get("message_id")),
            subscription=_metadata(push.get("subscription")),
            published_at=_time(message.get("publishTime") or message.get("publish_time")),
            delivery_attempt=attempt if type(attempt) is int else None,
            attributes=attributes if isinstance(attributes, dict) else {},
        )

    encoded = message.get("data")
    if not isinstance(encoded, str) or not encoded:
        raise Malformed("`message.data` is missing or not a string", source(body))
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise Malformed("`message.data` is not base64", source(body)) from None
    try:
        return source(data), _parse(data)
    except ValueError as fault:
        detail = f"`message.data` is not JSON that can be carried: {fault}"
        raise Malformed(detail, source(data)) from None


def _event(value: Any, source: Source) -> Event:
    if not isinstance(value, dict):
        raise Malformed("the event is not a JSON object", source)
    event_id = _name(value, "id", source)
    event_type = _name(value, "type", source)
    project = _name(value, "project", source)
    try:
        canonical = json.dumps(
            value, ensure_ascii=False, sort_keys=True, separators=(",", ":")
        ).encode()
    except (UnicodeEncodeError, RecursionError):
        raise Malformed("a lone surrogate, or nested too deeply", source) from None
    digest = hashlib.sha256(canonical).hexdigest()
    return Event(event_id, event_type, project, value, digest, source)


def _name(event: dict[str, Any], field_name: str, source: Source) -> str:
    name = event.get(field_name)
    if not isinstance(name, str):
        raise Malformed(f"`{field_name}` is missing or not a string", source)
    reserved = _RESERVED_PREFIX.get(field_name)
    if not _NAME.fullmatch(name) or name in {".", ".."}:
        detail = f"`{field_name}` must be 1 to 256 of the characters a-z A-Z 0-9 _ . -"
        raise Malformed(detail, source)
    if reserved and name.startswith(reserved):
        raise Malformed(f"`{field_name}` must not begin with {reserved}: Svix's own ids do", source)
    return name


def _parse(data: bytes) -> Any:
    """JSON as Python reads it, less what it would change. Raises ValueError in our words."""
    try:
        return json.loads(data, parse_constant=_refuse_constant, parse_float=_finite)
    except _Unfaithful:
        raise
    except RecursionError:
        raise _Unfaithful("nested too deeply") from None
    except ValueError:  # JSONDecodeError, UnicodeDecodeError, integers beyond Python's digits
        raise _Unfaithful("no valid JSON, or a number out of range") from None


class _Unfaithful(ValueError):
    pass


def _refuse_constant(_: str) -> NoReturn:
    raise _Unfaithful("NaN and Infinity are not JSON")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise _Unfaithful("a number out of range")
    return number


def _check_content_type(source: Source, headers: Mapping[str, str]) -> None:
    """By hand, JSON must say so; in a push an attribute may have replaced the content type."""
    media_type = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    is_json = media_type == "application/json" or media_type.endswith("+json")
    if not source.pushed and not is_json:
        raise Malformed("the Content-Type must be application/json", source, status=415)


def _metadata(value: Any) -> str | None:
    """A message id or a subscription, or None: only what is safe to log and to store."""
    plain = isinstance(value, str) and value.isascii() and value.isprintable()
    return value if plain and 0 < len(value) <= _METADATA_LIMIT else None


def _time(value: Any) -> datetime | None:
    try:
        time = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return time if time.tzinfo else None
