"""Reads a request's body and headers into an `Event`, or refuses them. Does no I/O.

A body has one of three forms: Pub/Sub's wrapped push, its unwrapped push, or a bare event posted by
hand. Its structure and the headers show which. The event is a CloudEvents object, or is in
CloudEvents' binary mode (`binary_mode.py`). The JSON of an event goes to Svix unchanged, or the
event is refused. (JSON that is not UTF-8 is recoded.)

Sources: https://cloud.google.com/pubsub/docs/push and
https://cloud.google.com/pubsub/docs/payload-unwrapping
"""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from relay import strict_json
from relay.binary_mode import Attributes, InvalidAttribute, is_json
from relay.outcome import MEDIA_TYPE, TOO_LARGE, Outcome

EVENT_LIMIT = 2 * 1024 * 1024
"""Bytes of the largest event that is parsed, and of the largest body posted by hand. Svix takes a
payload of at most 1 MiB, and a request of at most 2 MiB."""

PUSH_LIMIT = 14 * 1024 * 1024
"""Bytes of the largest push. Pub/Sub's largest message is 10 MB, and base64 adds a third."""

# Svix's rule for application uids, event types and event ids (https://api.svix.com/docs). It is a
# security boundary too, because the SDK puts the application's uid into the URL without escaping.
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,256}")
_NAMES = ("id", "type", "project")
_RESERVED_PREFIX = {"id": "msg_", "project": "app_"}

# Narrower than any rule Svix has had for tags, because Svix rejects an event for one invalid tag.
_TAG = re.compile(r"[a-zA-Z0-9_.-]{1,128}")
_MOST_TAGS = 5

_METADATA_LIMIT = 1024  # characters; Pub/Sub's own message ids and subscription names are shorter

_PUSHED_BY = "APIs-Google"
"""The beginning of the User-Agent of every Pub/Sub push."""
_DATA = re.compile(rb'"data"\s*:\s*("(?:[^"\\]++|\\.)*+")', re.DOTALL)
_MESSAGE_FIELDS = {"data", "messageId", "message_id", "attributes"}
_EVENTARC_TYPE = "google.cloud.pubsub.topic.v1.messagePublished"
"""The `ce-type` header of Eventarc's pushes, whose body is a wrapped push.
https://cloud.google.com/eventarc/docs/cloudevents#pubsub"""
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_TRACE_FIELDS = ("googclient_traceparent", "traceparent")


class Form(StrEnum):
    """What the field `data` of a `Source` holds."""

    DATA = "data"
    """The event's bytes."""
    BODY = "body"
    """The request's whole body, because no event could be read from it."""


@dataclass(frozen=True, slots=True)
class Names:
    """An event's names, as far as they could be read. Each follows Svix's rule for names."""

    id: str | None = None
    type: str | None = None
    project: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """How an event reached the relay. Even in a push, each field may be missing."""

    pushed: bool = False
    """Whether the request is a push of Pub/Sub, or has the form of a wrapped push. False for a bare
    event posted by hand, for a replay, and for a body that is too large to read."""
    data: bytes = field(default=b"", repr=False)
    form: Form = Form.DATA
    """What `data` is."""
    message_id: str | None = None
    subscription: str | None = None
    published_at: datetime | None = None
    delivery_attempt: int | None = None
    attributes: Mapping[str, str | None] = field(default_factory=dict, repr=False)
    """The message's attributes. The value is None for an invalid `ce-...` or `content-encoding`.
    Other invalid ones are left out. An unwrapped push has its attributes as headers. Of these, only
    the ones that a replay needs are kept: `ce-...`, `content-type` and `content-encoding`."""
    traceparent: str | None = None
    """The publisher's trace, or the request's (https://www.w3.org/TR/trace-context/)."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event of the platform.

    Each project has its own Svix application, so that no customer gets another one's events.
    """

    id: str
    type: str
    project: str
    text: bytes = field(repr=False)
    """The bytes that go to Svix: the publisher's own JSON, in UTF-8. For an event in binary mode,
    the relay writes the object around the publisher's data."""
    tags: tuple[str, ...]
    """The message's tags. Svix's portal can search for them."""
    payload_sha256: str
    """The hash of `text`. It shows whether an id comes again with another payload."""
    source: Source

    @property
    def names(self) -> Names:
        """The event's three names."""
        return Names(self.id, self.type, self.project)


class Refused(Exception):
    """No event can be read from the request. The message quotes nothing of the body.

    `outcome` is MALFORMED, REJECTED (the event is too large for Svix) or INCOMPLETE. `code` is
    TOO_LARGE (413) or MEDIA_TYPE (415) if that is why the event was refused, else None.
    """

    def __init__(
        self,
        outcome: Outcome,
        detail: str,
        source: Source,
        names: Names = Names(),
        code: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.outcome = outcome
        self.detail = detail
        self.source = source
        self.names = names
        self.code = code


def read(body: bytes, headers: Mapping[str, str], tag_paths: Sequence[str]) -> Event:
    """The event in a request's body.

    `headers` has lower-case names. If a header was sent twice, `headers.items()` yields it twice,
    as Starlette's headers do. `tag_paths` lead to strings in the event, such as `data.id`. Raises
    `Refused`.
    """
    attributes = Attributes.of_headers(headers)
    source = _source(headers, attributes, body)
    if not source.pushed and headers.get("content-encoding", "identity").lower() != "identity":
        detail = "compressed bodies are not accepted: send plain JSON"
        raise Refused(Outcome.MALFORMED, detail, source, code=MEDIA_TYPE)
    envelope, data = (body, "") if len(body) <= EVENT_LIMIT else _without_data(body)
    if len(envelope) > EVENT_LIMIT:
        raise _too_large(source)
    parsed = _parse(envelope)
    if _is_wrapped(parsed.value, attributes):
        return _read_wrapped(parsed.value, data, body, headers, tag_paths)
    if len(body) > EVENT_LIMIT:
        raise _too_large(source)
    if not (source.pushed or attributes.binary or is_json(headers.get("content-type"))):
        detail = "the content type is not JSON: send application/json"
        raise Refused(Outcome.MALFORMED, detail, source, code=MEDIA_TYPE)
    return _read_event(source, attributes, parsed, tag_paths)


def read_again(
    data: bytes, form: str, attributes: Mapping[str, str | None], tag_paths: Sequence[str]
) -> Event:
    """The event in a dead letter's data and attributes, read in the same way as from its push.

    The event's source is not a push, so the event is not parked again. Raises `Refused`.
    """
    if form == Form.BODY:
        event = read(data, {}, tag_paths)
        return replace(event, source=replace(event.source, pushed=False))
    source = Source(data=data, attributes=attributes)
    if len(data) > EVENT_LIMIT:
        raise _too_large(source)
    return _read_event(source, Attributes.of(attributes.items()), _parse(data), tag_paths)


def source_of(headers: Mapping[str, str]) -> Source:
    """What a request's headers say about its source, without its body."""
    return _source(headers, Attributes.of_headers(headers), b"")


def _source(headers: Mapping[str, str], attributes: Attributes, body: bytes) -> Source:
    message_id = headers.get("x-goog-pubsub-message-id")
    return Source(
        pushed=bool(message_id) or headers.get("user-agent", "").startswith(_PUSHED_BY),
        data=body,
        message_id=_metadata(message_id),
        subscription=_metadata(headers.get("x-goog-pubsub-subscription-name")),
        published_at=_time(headers.get("x-goog-pubsub-publish-time")),
        attributes=attributes.for_replay,
        traceparent=_traceparent(headers),
    )


class _Parsed(NamedTuple):
    """The result of parsing bytes as JSON."""

    text: bytes
    """The JSON in UTF-8."""
    value: Any
    fault: str | None
    """Why the bytes are not usable JSON. Then the text is empty."""


def _parse(data: bytes) -> _Parsed:
    try:
        return _Parsed(*strict_json.parse(data), None)
    except strict_json.UnsafeJson as fault:
        return _Parsed(b"", None, str(fault))


def _is_wrapped(value: Any, headers: Attributes) -> bool:
    """Whether a body's value is Pub/Sub's wrapper.

    An event has an `id`, a wrapper has none. If the headers are those of an event in binary mode,
    the body is the event's data, which may look like a wrapper. Eventarc's pushes are an exception:
    their headers look like binary mode, but their body is a wrapper.
    """
    is_data = headers.binary and headers.valid.get("ce-type") != _EVENTARC_TYPE
    if is_data or not isinstance(value, dict) or "id" in value:
        return False
    message = value.get("message")
    return isinstance(message, dict) and not _MESSAGE_FIELDS.isdisjoint(message)


def _without_data(body: bytes) -> tuple[bytes, str]:
    """Cut the data out of a large push. Returns the rest, which is quick to parse, and the data.

    Without a `data` string, the body is returned whole.
    """
    found = max(_DATA.finditer(body), key=lambda match: len(match[1]), default=None)
    if found is None:
        return body, ""
    try:
        return b'""'.join((body[: found.start(1)], body[found.end(1) :])), json.loads(found[1])
    except ValueError:
        return body, ""


def _read_wrapped(
    push: dict[str, Any],
    large_data: str,
    body: bytes,
    headers: Mapping[str, str],
    tag_paths: Sequence[str],
) -> Event:
    """The event in a wrapped push. `large_data` is the data that `_without_data` cut out."""
    message = push["message"]
    pairs = message.get("attributes")
    attributes = (
        Attributes.of(pairs.items(), strict_json.repeated_names(pairs))
        if isinstance(pairs, dict)
        else Attributes({})
    )
    attempt = push.get("deliveryAttempt", push.get("delivery_attempt"))
    source = Source(
        pushed=True,
        data=body,
        form=Form.BODY,
        message_id=_metadata(message.get("messageId") or message.get("message_id")),
        subscription=_metadata(push.get("subscription")),
        published_at=_time(message.get("publishTime") or message.get("publish_time")),
        delivery_attempt=attempt if type(attempt) is int else None,
        attributes=attributes.for_replay,
        traceparent=_traceparent(attributes.valid) or _traceparent(headers),
    )
    data = message.get("data", "") or large_data
    fault = None
    if not isinstance(data, str) or not (data or attributes.binary):
        fault = "`message.data` is missing or not a string"
    elif "message" in strict_json.repeated_names(push) or "data" in strict_json.repeated_names(
        message
    ):
        fault = "`message` or `message.data` occurs twice"
    else:
        try:
            source = replace(source, data=base64.b64decode(data, validate=True), form=Form.DATA)
        except (binascii.Error, ValueError):
            fault = "`message.data` is not base64"
    if fault:
        raise Refused(Outcome.MALFORMED, fault, source, _safe_names(attributes.context()))
    if len(source.data) > EVENT_LIMIT:
        raise _too_large(source)
    return _read_event(source, attributes, _parse(source.data), tag_paths)


def _too_large(source: Source) -> Refused:
    """The refusal of an event that is not parsed. Its names come from the attributes."""
    detail = f"the event is larger than {EVENT_LIMIT} bytes, which is more than Svix takes"
    context = Attributes.of(source.attributes.items()).context()
    return Refused(Outcome.REJECTED, detail, source, _safe_names(context), code=TOO_LARGE)


def _read_event(
    source: Source, attributes: Attributes, parsed: _Parsed, tag_paths: Sequence[str]
) -> Event:
    """The event in a source's data. `parsed` is that data, parsed."""
    text, value, fault = parsed
    if fault is None and strict_json.has_lone_surrogate(text):
        fault = "a lone surrogate"
    # If a body has `id`, `type` and `project`, it is a whole event, whatever the attributes say.
    # Wrapping it as the data of a second event would change what the customer gets.
    if attributes.binary and not _has_names(value):
        try:
            text, value = attributes.structured(source.data, None if fault else text, value)
        except InvalidAttribute as invalid:
            names = _safe_names(attributes.context())
            raise Refused(Outcome.MALFORMED, str(invalid), source, names) from None
    elif fault is not None:
        readable = value if isinstance(value, dict) else strict_json.first_members(source.data)
        detail = f"the event is not usable JSON: {fault}"
        raise Refused(Outcome.MALFORMED, detail, source, _safe_names(readable))
    elif not isinstance(value, dict):
        raise Refused(Outcome.MALFORMED, "the event is not a JSON object", source)
    if name_fault := next(filter(None, (_name_fault(value, name) for name in _NAMES)), None):
        raise Refused(Outcome.MALFORMED, name_fault, source, _safe_names(value))
    return Event(
        id=value["id"],
        type=value["type"],
        project=value["project"],
        text=text,
        tags=_tags(value, tag_paths),
        payload_sha256=hashlib.sha256(text).hexdigest(),
        source=source,
    )


def _has_names(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in _NAMES)


def _name_fault(event: dict[str, Any], field_name: str) -> str | None:
    name = event.get(field_name)
    if not isinstance(name, str):
        return f"`{field_name}` is missing or not a string"
    if field_name in strict_json.repeated_names(event):
        return f"`{field_name}` occurs twice"
    if not _NAME.fullmatch(name) or name in {".", ".."}:
        return (
            f"`{field_name}` must have 1 to 256 characters, each one of a-z A-Z 0-9 _ . - "
            "(`.` and `..` alone are not allowed)"
        )
    reserved = _RESERVED_PREFIX.get(field_name)
    if reserved and name.startswith(reserved):
        return f"`{field_name}` must not begin with {reserved}, because Svix's own ids do"
    return None


def _safe_names(event: Mapping[str, Any]) -> Names:
    """The event's names that are safe to log and to store."""
    repeated = strict_json.repeated_names(event)
    safe = (
        name if isinstance(name, str) and _NAME.fullmatch(name) else None
        for name in (None if name in repeated else event.get(name) for name in _NAMES)
    )
    return Names(*safe)


def _tags(event: dict[str, Any], paths: Sequence[str]) -> tuple[str, ...]:
    tags: dict[str, None] = {}
    for path in paths:
        value: Any = event
        for step in path.split("."):
            value = value.get(step) if isinstance(value, dict) else None
        if isinstance(value, str) and _TAG.fullmatch(value):
            tags[value] = None
    return tuple(tags)[:_MOST_TAGS]


def _traceparent(fields: Mapping[str, str]) -> str | None:
    found = (fields.get(name, "") for name in _TRACE_FIELDS)
    return next(filter(_TRACEPARENT.fullmatch, found), None)


def _metadata(value: Any) -> str | None:
    """A message id or a subscription, if it is safe to log and to store; else None."""
    is_plain = isinstance(value, str) and value.isascii() and value.isprintable()
    return value if is_plain and 0 < len(value) <= _METADATA_LIMIT else None


def _time(value: Any) -> datetime | None:
    try:
        time = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return time if time.tzinfo else None
