"""The JSON of Svix's API: requests, messages, listings and errors. It has no state.

Source: Svix's API description and the answers of its open-source server. `tests/svix` compares this
module with that server.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from local.svix.listing import Page
    from local.svix.store import Application, Attempt, Endpoint, StoredMessage

_NAME = re.compile(r"[a-zA-Z0-9_.-]+")
_LONGEST_NAME = 256
_DEEPEST = 127  # levels; a payload nested deeper reaches the customer, but the API does not show it
_RESPONSE_KEPT = 20_000  # characters of an endpoint's answer

BODIES = {
    "empty": b"",
    "html": b"<html><body>Bad gateway</body></html>",
    "text": b"upstream error",
    "array": b"[1, 2]",
    "string-detail": b'{"detail": "no list"}',
    "invalid": b'{"detail": [{"loc": ["body", "payload"], "msg": "no", "type": "value_error"}]}',
}
"""The bodies that a fault may answer with, besides an error in the API's format (`json`)."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The differences between the hosted Svix and the open-source one."""

    largest_payload: int
    """Bytes."""
    event_ids_for_ever: bool
    """True: an event id stays taken for ever. False: for a day."""
    minifies: bool
    """Whether Svix removes spaces and needless escapes from a payload before it sends it."""
    shows_tags: bool


LARGEST_BODY = 2 * 1024 * 1024  # bytes of a request
RULES = {
    "hosted": Rules(1024 * 1024, event_ids_for_ever=False, minifies=True, shows_tags=True),
    "open_source": Rules(LARGEST_BODY, event_ids_for_ever=True, minifies=False, shows_tags=False),
}


class Refusal(Exception):
    """An error answer of the API."""

    def __init__(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(f"{status} {body}")
        self.status = status
        self.body = body
        self.headers = headers


def error(status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> Refusal:
    """An error answer in the API's format."""
    return Refusal(status, {"code": code, "detail": detail}, headers)


def not_found(detail: str = "Entity not found") -> Refusal:
    """A 404 of the API. An unknown path gets a different 404, without a body."""
    return error(404, "not_found", detail)


def conflict(detail: str = "A conflict has occurred") -> Refusal:
    """A 409: a duplicate event id, or an application that another call has just created."""
    return error(409, "conflict", detail)


def too_large() -> Refusal:
    """A 413: the request or the payload is too large."""
    return error(413, "payload_too_large", "Request payload is too large.")


def invalid(*loc: str, message: str, kind: str = "value_error", place: str = "body") -> Refusal:
    """A 422: a field is wrong. `place` and `loc` say which."""
    return Refusal(422, {"detail": [{"loc": [place, *loc], "msg": message, "type": kind}]})


# -- in


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A checked `MessageIn`."""

    event_id: str | None
    event_type: str
    text: str
    channels: frozenset[str] | None
    tags: tuple[str, ...]
    application: "NewApplication | None"


@dataclass(frozen=True, slots=True)
class NewApplication:
    """A checked `ApplicationIn`."""

    uid: str | None
    name: str

    @classmethod
    def read(cls, body: Mapping[str, Any], *loc: str) -> "NewApplication":
        """Read and check an `ApplicationIn`. Raises Refusal."""
        uid, name = body.get("uid"), body.get("name")
        if not isinstance(name, str):
            raise invalid(*loc, "name", message="missing field `name`", kind=NOT_READ)
        if not name:
            message = "Application names must be at least one character"
            raise invalid(*loc, "name", message=message)
        if uid is not None:
            check_name(uid, *loc, "uid", reserved="app_")
        return cls(uid, name)

    def check_uid(self, app: str) -> None:
        """Check that the uid of an application to be created is the one in the path."""
        if self.uid is None:
            message, kind = "Application UID not set in body", "application_uid_missing"
            raise invalid("application", "uid", message=message, kind=kind)
        if self.uid != app:
            message = "Application UID in the path and body must match"
            kind = "application_uid_mismatch"
            raise invalid("application", "uid", message=message, kind=kind)


NOT_READ = "value_error.jsondecode"
"""The type of a 422 for a body that could not be parsed."""


def read_object(body: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of a request's object, and the text of each value. Raises Refusal."""
    try:
        text = body.decode()
        return _members(text)
    except (ValueError, RecursionError):
        raise invalid("", "", message="expected value", kind=NOT_READ) from None


def read_message(body: bytes, rules: Rules) -> NewMessage:
    """Read and check a `MessageIn`. Raises Refusal."""
    values, texts = read_object(body)
    payload, event_type = values.get("payload"), values.get("eventType")
    if not isinstance(event_type, str) or "payload" not in values:
        raise invalid("", "", message="missing field", kind=NOT_READ)
    event_id, application = values.get("eventId"), values.get("application")
    if event_id is not None:
        check_name(event_id, "uid", reserved="msg_")
    check_name(event_type, "event_type")
    if not isinstance(payload, dict):
        raise invalid("payload", message="Payload must be an object.")
    try:
        text = minified(texts["payload"]) if rules.minifies else texts["payload"]
        size = len(text.encode())
    except ValueError:  # half of a surrogate pair
        raise invalid("payload", message="not UTF-8", kind=NOT_READ) from None
    if size > rules.largest_payload:
        raise too_large()
    channels = values.get("channels")
    return NewMessage(
        event_id,
        event_type,
        text,
        frozenset(channels) if channels else None,
        tuple(values.get("tags") or ()) if rules.shows_tags else (),
        NewApplication.read(application, "application") if application is not None else None,
    )


def read_endpoint(body: bytes) -> dict[str, Any]:
    """The fields of an endpoint that `EndpointIn` or `EndpointPatch` sets. Raises Refusal."""
    values, _ = read_object(body)
    fields: dict[str, Any] = {}
    if "url" in values:
        fields["url"] = values["url"]
        if urlsplit(str(values["url"])).scheme not in {"http", "https"}:
            raise invalid("url", message="Endpoint URL schemes must be http or https")
    for name, field in (
        ("filterTypes", "event_types"),
        ("eventTypes", "event_types"),
        ("channels", "channels"),
    ):
        if name in values:
            chosen = values[name]
            if chosen is not None and not chosen:
                raise invalid(field, message=f"{name} can't be empty, it must have an item.")
            fields[field] = frozenset(chosen) if chosen else None
    plain = ("disabled", "description")
    return fields | {name: values[name] for name in plain if name in values}


def check_name(value: Any, *loc: str, reserved: str | None = None, place: str = "body") -> str:
    """Check a uid or an event type's name, and return it. Raises Refusal."""
    if not isinstance(value, str):
        raise invalid(*loc, message="invalid type", kind=NOT_READ, place=place)
    message = None
    if not value:
        message = "String must be at least one character"
    elif len(value) > _LONGEST_NAME:
        message = "String too long"
    elif not _NAME.fullmatch(value):
        message = "String must match the following pattern: [a-zA-Z0-9\\-_.]."
    elif reserved is not None and value.startswith(reserved):
        message = "Uids are not allowed to have the same prefix as the ID. Prefix with _?"
    if message is not None:
        raise invalid(*loc, "__all__", message=message, place=place)
    return value


def minified(text: str) -> str:
    """A JSON text without spaces and needless escapes. Its numbers are unchanged."""

    def shorter(match: re.Match[str]) -> str:
        string = match[1] or ""
        return json.dumps(json.loads(string), ensure_ascii=False) if "\\" in string else string

    return _STRING_OR_SPACE.sub(shorter, text)


_STRING_OR_SPACE = re.compile(r'("(?:[^"\\]++|\\.)*+")|\s+')
_SPACE = re.compile(r"[ \t\n\r]*")


def _refuse(name: str) -> None:
    raise ValueError(name)  # NaN and the like are not JSON


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def _members(text: str) -> tuple[dict[str, Any], dict[str, str]]:
    """An object's values, and each value's original text. Raises ValueError, RecursionError."""
    values: dict[str, Any] = {}
    texts: dict[str, str] = {}
    position = _skip(text, 0)
    if text[position : position + 1] != "{":
        raise ValueError("no object")
    position = _skip(text, position + 1)
    separator = ","
    if text[position : position + 1] == "}":
        separator = "}"
        position += 1
    while separator == ",":
        name, end = _DECODER.raw_decode(text, position)
        colon = _skip(text, end)
        if not isinstance(name, str) or text[colon : colon + 1] != ":":
            raise ValueError("no name")
        start = _skip(text, colon + 1)
        if name in values:
            raise ValueError("duplicate field")
        values[name], end = _DECODER.raw_decode(text, start)
        texts[name] = text[start:end]
        end = _skip(text, end)
        separator = text[end : end + 1]
        position = _skip(text, end + 1)
    if separator != "}" or position < len(text):
        raise ValueError("no end")
    return values, texts


def _skip(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


# -- out


def message_out(message: "StoredMessage", rules: Rules, *, with_content: bool) -> str:
    """`MessageOut`. With `with_content` it includes the payload."""
    out = {
        "eventId": message.event_id,
        "eventType": message.event_type,
        "channels": sorted(message.channels) if message.channels else None,
        "id": message.id,
        "timestamp": _time(message.received_at),
    }
    if rules.shows_tags and message.tags:
        out["tags"] = list(message.tags)
    payload = "{}"
    if with_content:
        payload = message.text if _depth(message.text) <= _DEEPEST else '{"expired":true}'
    return f'{json.dumps(out)[:-1]}, "payload": {payload}}}'


def application_out(application: "Application") -> dict[str, Any]:
    """`ApplicationOut`."""
    created = _time(application.created_at)
    return {
        "id": application.id,
        "uid": application.uid,
        "name": application.name,
        "metadata": {},
        "createdAt": created,
        "updatedAt": created,
    }


def endpoint_out(endpoint: "Endpoint") -> dict[str, Any]:
    """`EndpointOut`."""
    created = _time(endpoint.created_at)
    types = sorted(endpoint.event_types) if endpoint.event_types else None
    return {
        "id": endpoint.id,
        "description": endpoint.description,
        "uid": None,
        "url": endpoint.url,
        "version": 1,
        "disabled": endpoint.disabled,
        "eventTypes": types,
        "filterTypes": types,
        "channels": sorted(endpoint.channels) if endpoint.channels else None,
        "metadata": {},
        "createdAt": created,
        "updatedAt": created,
    }


def attempt_out(attempt: "Attempt") -> dict[str, Any]:
    """`MessageAttemptOut`."""
    return {
        "id": attempt.id,
        "url": attempt.url,
        "response": attempt.response[:_RESPONSE_KEPT],
        "responseStatusCode": attempt.code,
        "responseDurationMs": round(attempt.duration * 1000),
        **_standing(attempt),
        "triggerType": int(attempt.is_manual),
        "msgId": attempt.message_id,
        "endpointId": attempt.endpoint_id,
        "timestamp": _time(attempt.at),
    }


def destination_out(endpoint: "Endpoint", attempt: "Attempt") -> dict[str, Any]:
    """`MessageEndpointOut`: an endpoint, and the status of a message's last attempt there."""
    next_at = _time(attempt.next_at) if attempt.next_at else None
    return endpoint_out(endpoint) | _standing(attempt) | {"nextAttempt": next_at}


def status_of(attempt: "Attempt") -> int:
    """Svix's number for an attempt's status: 2 for a failed one, even if a retry follows."""
    return 0 if attempt.succeeded else 2


def _standing(attempt: "Attempt") -> dict[str, Any]:
    return {"status": status_of(attempt), "statusText": "success" if attempt.succeeded else "fail"}


def event_type_out(name: str, created_at: datetime) -> dict[str, Any]:
    """`EventTypeOut`."""
    created = _time(created_at)
    flags = {"archived": False, "deprecated": False}
    return {"name": name, "description": name, **flags, "createdAt": created, "updatedAt": created}


def listing_out(page: "Page", items: list[str]) -> str:
    """One page of a listing. `items` are JSON texts."""
    around: dict[str, Any] = {"iterator": page.ids[-1] if page.ids else None, "done": page.done}
    if page.ids:
        around["prevIterator"] = f"-{page.ids[0]}"
    return f'{json.dumps(around)[:-1]}, "data": [{", ".join(items)}]}}'


def _time(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


def _depth(text: str) -> int:
    """How deep a JSON text is nested."""
    deepest = depth = 0
    for bracket in _BRACKETS.findall(text):
        depth += 1 if bracket in "{[" else -1 if bracket in "}]" else 0
        deepest = max(deepest, depth)
    return deepest


_BRACKETS = re.compile(r'[{}\[\]]|"(?:[^"\\]|\\.)*"')
