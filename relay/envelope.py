"""From a request's body and headers to an Event: pure, and the only place that knows the bodies.

Three bodies are told apart by their structure and headers: Pub/Sub's wrapped push, its unwrapped
push, and a bare event posted by hand. The event in them is a CloudEvents object, or it is in
CloudEvents' binary mode: its attributes beside it, and `data` alone in the body. What cannot be
carried to Svix faithfully is refused here, never edited.

Sources: https://cloud.google.com/pubsub/docs/push,
https://cloud.google.com/pubsub/docs/payload-unwrapping,
https://github.com/google/knative-gcp/blob/main/docs/spec/pubsub-protocol-binding.md and
https://github.com/cloudevents/spec/blob/main/cloudevents/bindings/http-protocol-binding.md
"""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any
from urllib.parse import unquote

from relay import strict_json
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
_MOST_ATTRIBUTES, _ATTRIBUTE_NAME_LIMIT, _ATTRIBUTE_LIMIT = 100, 256, 1024  # Pub/Sub's own quotas

_PUSHED_BY = "APIs-Google"
"""How the User-Agent of each Pub/Sub push begins."""
_MESSAGE_FIELDS = {"data", "messageId", "message_id", "attributes"}
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_TRACE_ATTRIBUTES = ("googclient_traceparent", "traceparent")


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
    attributes: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The message's attributes. Of an unwrapped push, whose attributes are headers: what a replay
    needs of them to read the event the same way (`ce-...`, `content-type`)."""
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
        names: Names = Names(),  # noqa: B008 - it is frozen
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

    `headers` has lower-case names; a Starlette `Headers` shows those that stand twice. `tag_paths`
    lead into the event, such as `data.id`. Raises `Refused` for every body that is not an event.
    """
    source = source_of(headers, body)
    by_headers = _Attributes(headers.items(), by_hand=not source.pushed)
    if not source.pushed and headers.get("content-encoding", "identity").lower() != "identity":
        detail = "compressed bodies are not taken: send plain JSON"
        raise Refused(Outcome.MALFORMED, detail, source, code=MEDIA_TYPE)
    if source.pushed and len(body) > EVENT_LIMIT and not _begins_an_object(body):
        raise _too_large(source, by_headers)
    try:
        value = strict_json.parse(body)
    except strict_json.Unfaithful as fault:
        if by_headers.binary:
            return _binary(by_headers, source, tag_paths)
        _check_media_type(source, headers)
        detail = f"the body is not JSON that can be carried: {fault}"
        raise Refused(Outcome.MALFORMED, detail, source, _names_in(body)) from None
    if _is_wrapped(value):
        return _wrapped(value, body, headers, tag_paths)
    if len(body) > EVENT_LIMIT:
        raise _too_large(source, by_headers)
    if by_headers.binary and not _has_names(value):
        return _binary(by_headers, source, tag_paths)
    _check_media_type(source, headers)
    return _structured(value, source, tag_paths)


def read_again(
    data: bytes, form: str, attributes: Mapping[str, str], tag_paths: Sequence[str]
) -> Event:
    """The event in what was kept of a source, read as it was the first time.

    Its source is not a push. Raises `Refused`.
    """
    if form == Form.BODY:
        try:
            event = read(data, {}, tag_paths)
        except Refused as fault:
            fault.source = replace(fault.source, pushed=False)
            raise
        return replace(event, source=replace(event.source, pushed=False))
    return _event(Source(data=data, attributes=attributes), tag_paths)


def source_of(headers: Mapping[str, str], body: bytes = b"") -> Source:
    """What the headers alone say of where a request comes from."""
    message_id = headers.get("x-goog-pubsub-message-id")
    pushed = bool(message_id) or headers.get("user-agent", "").startswith(_PUSHED_BY)
    kept = [
        (name, value)
        for name, value in headers.items()
        if name.startswith("ce-") or name == "content-type"
    ]
    return Source(
        pushed=pushed,
        data=body,
        message_id=_metadata(message_id),
        subscription=_metadata(headers.get("x-goog-pubsub-subscription-name")),
        published_at=_time(headers.get("x-goog-pubsub-publish-time")),
        attributes=_attributes(dict(kept)) if pushed else {},
        traceparent=_traceparent(headers),
    )


def _is_wrapped(value: Any) -> bool:
    """Whether this is Pub/Sub's wrapper: an event has an id, and a message more than a name."""
    if not isinstance(value, dict) or "id" in value:
        return False
    message = value.get("message")
    return isinstance(message, dict) and not _MESSAGE_FIELDS.isdisjoint(message)


def _wrapped(
    push: dict[str, Any], body: bytes, headers: Mapping[str, str], tag_paths: Sequence[str]
) -> Event:
    message = push["message"]
    attempt = push.get("deliveryAttempt", push.get("delivery_attempt"))
    attributes = _attributes(message.get("attributes"))
    source = Source(
        pushed=True,
        data=body,
        form=Form.BODY,
        message_id=_metadata(message.get("messageId") or message.get("message_id")),
        subscription=_metadata(push.get("subscription")),
        published_at=_time(message.get("publishTime") or message.get("publish_time")),
        delivery_attempt=attempt if type(attempt) is int else None,
        attributes=attributes,
        traceparent=_traceparent(attributes) or _traceparent(headers),
    )
    encoded = message.get("data", "")
    if not isinstance(encoded, str):
        raise Refused(Outcome.MALFORMED, "`message.data` is not a string", source)
    if twice := strict_json.doubled(push, {"message"}) | strict_json.doubled(message, {"data"}):
        raise Refused(Outcome.MALFORMED, f"`{min(twice)}` stands twice in the push", source)
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(Outcome.MALFORMED, "`message.data` is not base64", source) from None
    ...
