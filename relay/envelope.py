"""From a request's body and headers to an Event: pure, and the only place that knows the bodies.

Three bodies are told apart by their structure and headers: Pub/Sub's wrapped push, its unwrapped
push, and a bare event posted by hand. The event in them is a CloudEvents object, or it is in
CloudEvents' binary mode (`binary_mode.py`). What cannot be carried to Svix faithfully is refused
here, never edited.

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
from relay.binary_mode import Attributes, Uncarried, is_json
from relay.outcome import MEDIA_TYPE, TOO_LARGE, Outcome

EVENT_LIMIT = 2 * 1024 * 1024
"""Bytes of the largest event that is looked at. Svix takes a payload of 1 MiB, and a request of
2 MiB: a larger event fits no Svix. By hand it is the limit of the body."""

PUSH_LIMIT = 14 * 1024 * 1024
"""Bytes of the largest push: Pub/Sub's largest message is 10 MB, and base64 adds a third."""

# Svix's own rule for application uids, event types and event ids (https://api.svix.com/docs). It
# is a security boundary too: the SDK puts the application into the URL as it is.
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,256}")
_NAMES = ("id", "type", "project")
_RESERVED_PREFIX = {"id": "msg_", "project": "app_"}

# Narrower than any rule that Svix has had for tags: one that does not fit would cost the event.
_TAG = re.compile(r"[a-zA-Z0-9_.-]{1,128}")
_MOST_TAGS = 5

_METADATA_LIMIT = 1024  # characters; Pub/Sub's own message ids and subscription names are shorter

_PUSHED_BY = "APIs-Google"
"""How the User-Agent of each Pub/Sub push begins."""
_DATA = re.compile(rb'"data"\s*:\s*("(?:[^"\\]++|\\.)*+")', re.DOTALL)
_MESSAGE_FIELDS = {"data", "messageId", "message_id", "attributes"}
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_TRACE_FIELDS = ("googclient_traceparent", "traceparent")


class Form(StrEnum):
    """What a source's data is."""

    DATA = "data"
    """The event's bytes."""
    BODY = "body"
    """The whole body, out of which no event could be taken."""


@dataclass(frozen=True, slots=True)
class Names:
    """What could be read of an event's names; each follows Svix's rule for names."""

    id: str | None = None
    type: str | None = None
    project: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """How an event came here. All of it is optional, even in a push."""

    pushed: bool = False
    """Whether Pub/Sub brought it, which takes a 2xx as an ack; else it was posted by hand."""
    data: bytes = field(default=b"", repr=False)
    form: Form = Form.DATA
    """What `data` is."""
    message_id: str | None = None
    subscription: str | None = None
    published_at: datetime | None = None
    delivery_attempt: int | None = None
    attributes: Mapping[str, str | None] = field(default_factory=dict, repr=False)
    """The message's attributes; None for one that stands twice or is no string that Pub/Sub could
    carry. Of an unwrapped push, whose attributes are headers: what a replay needs of them to read
    the event the same way (`ce-...`, `content-type`, `content-encoding`)."""
    traceparent: str | None = None
    """The publisher's trace, or the request's (https://www.w3.org/TR/trace-context/)."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event of the platform. Its project is the Svix application: the tenant boundary."""

    id: str
    type: str
    project: str
    text: bytes = field(repr=False)
    """The event's JSON in UTF-8, as the publisher wrote it: Svix is sent these bytes."""
    tags: tuple[str, ...]
    """What Svix's portal can find its message by."""
    payload_sha256: str
    """Of the text, so that an id seen again with another payload is noticed."""
    source: Source

    @property
    def names(self) -> Names:
        """Its three names together."""
        return Names(self.id, self.type, self.project)


class Refused(Exception):
    """A request that no event can be taken from; its text never repeats the body's.

    `outcome` is MALFORMED, REJECTED (larger than any Svix takes) or INCOMPLETE; `code` a machine
    word where HTTP has a status of its own for the reason.
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

    `headers` has lower-case names; Starlette's show those that stand twice. `tag_paths` lead to
    strings in the event, such as `data.id`. Raises `Refused` for every body that is not an event.
    """
    attributes = Attributes.of_headers(headers)
    source = _source(headers, attributes, body)
    if not source.pushed and headers.get("content-encoding", "identity").lower() != "identity":
        detail = "compressed bodies are not taken: send plain JSON"
        raise Refused(Outcome.MALFORMED, detail, source, code=MEDIA_TYPE)
    envelope, data = (body, "") if len(body) <= EVENT_LIMIT else _without_data(body)
    if len(envelope) > EVENT_LIMIT:
        raise _too_large(source)
    parsed = _parse(envelope)
    if _is_wrapped(parsed.value):
        return _wrapped(parsed.value, data, body, headers, tag_paths)
    if len(body) > EVENT_LIMIT:
        raise _too_large(source)
    if not (source.pushed or attributes.binary or is_json(headers.get("content-type"))):
        detail = "the content type is not JSON: send application/json"
        raise Refused(Outcome.MALFORMED, detail, source, code=MEDIA_TYPE)
    return _event(source, attributes, parsed, tag_paths)


def read_again(
    data: bytes, form: str, attributes: Mapping[str, str | None], tag_paths: Sequence[str]
) -> Event:
    """The event in what was kept of a source, read as it was the first time.

    Its source is not a push. Raises `Refused`.
    """
    if form == Form.BODY:
        event = read(data, {}, tag_paths)
        return replace(event, source=replace(event.source, pushed=False))
    source = Source(data=data, attributes=attributes)
    if len(data) > EVENT_LIMIT:
        raise _too_large(source)
    return _event(source, Attributes.of(attributes.items()), _parse(data), tag_paths)


def source_of(headers: Mapping[str, str]) -> Source:
    """What a request's headers alone say of where it comes from."""
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
    """Bytes that may be JSON."""

    text: bytes
    """In UTF-8."""
    value: Any
    fault: str | None
    """Why they are not JSON that can be carried; the text is empty then."""


def _parse(data: bytes) -> _Parsed:
    try:
        return _Parsed(*strict_json.parse(data), None)
    except strict_json.Unfaithful as fault:
        return _Parsed(b"", None, str(fault))


def _is_wrapped(value: Any) -> bool:
    """Whether this is Pub/Sub's wrapper: an event has an id, a wrapper's message has its fields."""
    if not isinstance(value, dict) or "id" in value:
        return False
    message = value.get("message")
    return isinstance(message, dict) and not _MESSAGE_FIELDS.isdisjoint(message)


def _without_data(body: bytes) -> tuple[bytes, str]:
    """A large push without its data, and the data: so that only the rest has to be parsed.

    Where there is none, the body as it is.
    """
    found = max(_DATA.finditer(body), key=lambda match: len(match[1]), default=None)
    if found is None:
        return body, ""
    try:
        return b'""'.join((body[: found.start(1)], body[found.end(1) :])), json.loads(found[1])
    except ValueError:
        return body, ""


def _wrapped(
    push: dict[str, Any],
    taken_out: str,
    body: bytes,
    headers: Mapping[str, str],
    tag_paths: Sequence[str],
) -> Event:
    """The event in a wrapped push; its data is in `taken_out` where it was large."""
    message = push["message"]
    pairs = message.get("attributes")
    attributes = (
        Attributes.of(pairs.items(), strict_json.doubled(pairs))
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
        traceparent=_traceparent(attributes.kept) or _traceparent(headers),
    )
    data = message.get("data", "") or taken_out
    fault = None
    if not isinstance(data, str) or not (data or attributes.binary):
        fault = "`message.data` is missing or not a string"
    elif "message" in strict_json.doubled(push) or "data" in strict_json.doubled(message):
        fault = "the push holds two messages, or a message two data"
    else:
        try:
            source = replace(source, data=base64.b64decode(data, validate=True), form=Form.DATA)
        except (binascii.Error, ValueError):
            fault = "`message.data` is not base64"
    if fault:
        raise Refused(Outcome.MALFORMED, fault, source, _proper_names(attributes.context()))
    if len(source.data) > EVENT_LIMIT:
        raise _too_large(source)
    return _event(source, attributes, _parse(source.data), tag_paths)


def _too_large(source: Source) -> Refused:
    """Nothing of the event is looked at: its names are what the attributes tell."""
    detail = f"the event is larger than {EVENT_LIMIT} bytes: Svix takes none of that size"
    context = Attributes.of(source.attributes.items()).context()
    return Refused(Outcome.REJECTED, detail, source, _proper_names(context), code=TOO_LARGE)


def _event(
    source: Source, attributes: Attributes, parsed: _Parsed, tag_paths: Sequence[str]
) -> Event:
    """The event in a source's data, which `parsed` is what was read of."""
    text, value, fault = parsed
    if fault is None and strict_json.has_lone_surrogate(text):
        fault = "a lone surrogate"
    if attributes.binary and not _has_names(value):
        try:
            text, value = attributes.structured(source.data, None if fault else text, value)
        except Uncarried as uncarried:
            names = _proper_names(attributes.context())
            raise Refused(Outcome.MALFORMED, str(uncarried), source, names) from None
    elif fault is not None:
        readable = value if isinstance(value, dict) else strict_json.first_members(source.data)
        detail = f"the event is not JSON that can be carried: {fault}"
        raise Refused(Outcome.MALFORMED, detail, source, _proper_names(readable))
    elif not isinstance(value, dict):
        raise Refused(Outcome.MALFORMED, "the event is not a JSON object", source)
    if name_fault := next(filter(None, (_name_fault(value, name) for name in _NAMES)), None):
        raise Refused(Outcome.MALFORMED, name_fault, source, _proper_names(value))
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
    if field_name in strict_json.doubled(event):
        return f"`{field_name}` stands twice"
    if not _NAME.fullmatch(name) or name in {".", ".."}:
        return f"`{field_name}` must be 1 to 256 of the characters a-z A-Z 0-9 _ . -"
    reserved = _RESERVED_PREFIX.get(field_name)
    if reserved and name.startswith(reserved):
        return f"`{field_name}` must not begin with {reserved}: Svix's own ids do"
    return None


def _proper_names(event: Mapping[str, Any]) -> Names:
    """Those of an event's names that are safe to log and to store."""
    twice = strict_json.doubled(event)
    proper = (
        name if isinstance(name, str) and _NAME.fullmatch(name) else None
        for name in (None if name in twice else event.get(name) for name in _NAMES)
    )
    return Names(*proper)


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
    """A message id or a subscription, or None: only what is safe to log and to store."""
    plain = isinstance(value, str) and value.isascii() and value.isprintable()
    return value if plain and 0 < len(value) <= _METADATA_LIMIT else None


def _time(value: Any) -> datetime | None:
    try:
        time = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return time if time.tzinfo else None
