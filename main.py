"""The Cloud Function: HTTP in, an HTTP status out. What happens to an event is in `relay/`."""

import asyncio
import math
import os
import sys

import functions_framework.aio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from relay.config import ConfigurationError, Settings
from relay.envelope import BODY_LIMIT, Event, Malformed, Source
from relay.outcome import Result
from relay.worker import Relay, ledger_opener

try:
    SETTINGS = Settings.from_environment(os.environ)
except ConfigurationError as fault:
    sys.exit(str(fault))

_open_ledger = ledger_opener(SETTINGS)
_relay: Relay | None = None


@functions_framework.aio.http
async def notifications(request: Request) -> Response:
    """Take one event, from a Pub/Sub push or posted by hand: `POST /notifications`."""
    global _relay  # noqa: PLW0603 - built once per worker, on its first request
    if request.url.path != "/notifications":
        return JSONResponse({"detail": "not found: events go to /notifications"}, 404)
    if request.method != "POST":
        return JSONResponse({"detail": "events are posted"}, 405, {"Allow": "POST"})
    if _relay is None:
        _relay = Relay(SETTINGS, _open_ledger)
    return _answer(*await _relay.handle(_body(request), request.headers))


async def _body(request: Request) -> bytes:
    """At most `BODY_LIMIT` bytes, in half the budget: what is longer or slower is refused."""
    body = bytearray()
    try:
        async with asyncio.timeout(SETTINGS.request_budget / 2):
            async for chunk in request.stream():
                body += chunk
                if len(body) > BODY_LIMIT:
                    raise Malformed("the body is longer than 2 MiB", Source(), 413)
    except TimeoutError:
        raise Malformed("the body did not come in time", Source(), 408) from None
    except ClientDisconnect:
        raise Malformed("the sender hung up before the body's end", Source()) from None
    return bytes(body)


def _answer(result: Result, event: Event | None) -> Response:
    told = {
        "outcome": result.outcome,
        "event_id": event and event.id,
        "project": event and event.project,
        "svix_message_id": result.svix_message_id,
        "detail": result.detail,
        "dead_letter": result.dead_letter,
    }
    headers = {}
    if result.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(result.retry_after)))
    present = {name: value for name, value in told.items() if value is not None}
    return JSONResponse(present, result.status, headers)
