"""How Svix's API words things: messages in and out, lists, errors. Shapes only, no state."""

import json
import re
from datetime import datetime
from typing import Any

from aiohttp import web

from local.conduct import StoredMessage

_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,256}")
_PAYLOAD_LIMIT = 1024 * 1024  # bytes, as Svix's
_PAGE = 50  # items in a list's page, where the caller does not say
BODIES = {
    "empty": b"",
    "html": b"<html><body>Bad gateway</body></html>",
    "text": b"upstream error",
    "array": b"[1, 2]",
    "string-detail": b'{"detail": "no list"}',
}
"""What a fault may answer with, besides an error as the API words it."""


async def message_in(request: web.Request) -> tuple[dict[str, Any], web.Response | None]:
    """The body of a new message, or what is wrong with it."""
    try:
        body = json.loads(await request.read())
    except ValueError:
        return {}, error(400, "bad_request", "Invalid JSON")
    payload = body.get("payload")
    if not isinstance(payload, dict):
        return {}, invalid("payload", "must be an object")
    if len(json.dumps(payload, ensure_ascii=False).encode()) > _PAYLOAD_LIMIT:
        return {}, error(413, "payload_too_large", "Payload is over 1 MiB")
    names = {
        "app_id": (request.match_info["app"], "app_"),
        "eventId": (body.get("eventId", "none"), "msg_"),
        "eventType": (body.get("eventType"), None),
    }
    for name, (value, reserved) in names.items():
        if not isinstance(value, str) or not _NAME.fullmatch(value):
            return {}, invalid(name, "must match ^[a-zA-Z0-9\\-_.]{1,256}$")
        if reserved is not None and value.startswith(reserved):
            return {}, invalid(name, f"must not begin with {reserved}")
    return body, None


def message_out(message: StoredMessage, request: web.Request) -> dict[str, Any]:
    """`MessageOut`; the payload only where it is asked for."""
    with_content = request.query.get("with_content", "true") == "true"
    return {
        "id": message.id,
        "eventId": message.event_id,
        "eventType": message.event_type,
        "payload": message.payload if with_content else {},
        "timestamp": message.received_at.isoformat(),
    }


def attempt_out(message: StoredMessage, endpoint: dict[str, Any]) -> dict[str, Any]:
    """`MessageAttemptOut`: one attempt to deliver to this endpoint."""
    status = endpoint.get("status", 0)
    texts = ["success", "pending", "fail", "sending"]
    return {
        "id": f"atmpt_{endpoint['id']}_{message.id}",
        "url": endpoint["url"],
        "response": "",
        "responseStatusCode": endpoint.get("code", 200 if status == 0 else 500),
        "responseDurationMs": 12,
        "status": status,
        "statusText": texts[status],
        "triggerType": 0,
        "msgId": message.id,
        "endpointId": endpoint["id"],
        "timestamp": message.received_at.isoformat(),
    }


def endpoint_out(endpoint: dict[str, Any], created_at: str) -> dict[str, Any]:
    """`EndpointOut`: of an endpoint, what Svix itself would show."""
    shown = ("id", "url", "eventTypes", "channels", "disabled")
    return {
        "metadata": {},
        "description": "",
        "createdAt": created_at,
        "updatedAt": created_at,
        **{name: endpoint[name] for name in shown if name in endpoint},
    }


def destination_out(
    message: StoredMessage, endpoint: dict[str, Any], created_at: str
) -> dict[str, Any]:
    """`MessageEndpointOut`: how it stands between this message and this endpoint."""
    attempt = attempt_out(message, endpoint)
    out = endpoint_out(endpoint, created_at)
    out |= {name: attempt[name] for name in ("status", "statusText")}
    return out | {"nextAttempt": endpoint.get("nextAttempt")}


def page(request: web.Request, items: list[tuple[str, dict[str, Any]]]) -> web.Response:
    """A page of a list: what comes after the item that `iterator` names."""
    limit = int(request.query.get("limit", _PAGE))
    iterator = request.query.get("iterator")
    start = next((n + 1 for n, (name, _) in enumerate(items) if name == iterator), 0)
    page = items[start : start + limit]
    return web.json_response(
        {
            "data": [item for _, item in page],
            "iterator": page[-1][0] if page else iterator,
            "prevIterator": None,
            "done": start + limit >= len(items),
        }
    )


def error(
    status: int, code: str, detail: str, headers: dict[str, str] | None = None
) -> web.Response:
    """An error as the API words it."""
    return web.json_response({"code": code, "detail": detail}, status=status, headers=headers)


def conflict() -> web.Response:
    """409: a duplicate event id, or an application that another call is creating."""
    return error(409, "conflict", "A resource with that id exists already")


def invalid(name: str, message: str) -> web.Response:
    """422."""
    detail = [{"loc": ["body", name], "msg": message, "type": "value_error"}]
    return web.json_response({"detail": detail}, status=422)


def reset(request: web.Request) -> web.Response:
    """Cut the connection without an answer."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)


def time(text: str | None) -> datetime | None:
    """A time of the query, where there is one."""
    return None if text is None else datetime.fromisoformat(text)
