"""The Svix adapter: one call through Svix's SDK, its answer classified.

Classified by the status and headers on the wire, not by the exception the SDK raised: it raises
parsing errors for bodies it does not expect, a 2xx among them although Svix took the message. The
SDK's own retries are off: `delivery.py` tries again, and knows about pauses and deadlines.

Source: https://api.svix.com/docs and the SDK itself; tests pin what is relied on.
"""

import asyncio
import email.utils
import math
import re
from collections.abc import Coroutine
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import httpx
from httpx_aiohttp import AiohttpTransport
from pydantic_core import PydanticSerializationError
from svix.api.message import MessageAsync, MessageCreateOptions, MessageGetOptions
from svix.api.svix import ClientBase, SvixOptions
from svix.models import ApplicationIn, MessageIn, MessageOut

from relay.config import SVIX_CALL_SECONDS
from relay.envelope import Event
from relay.outcome import Answer, Verdict

_CONNECTIONS = 1000
"""As many as requests can be at one instance of Cloud Run: the pacer decides how many are used."""

_KEEP_ALIVE_SECONDS = 50.0
"""Idle connections are kept for the next burst, but not past a load balancer's usual minute."""

# Svix's error codes are words such as `not_found`, its locs paths such as `body.payload`: anything
# else might be a piece of the event.
_CODE = re.compile(r"[a-z0-9_-]{1,64}")
_LOC = re.compile(r"[a-zA-Z0-9_.-]{1,100}")
_LOCS_KEPT = 3

_response_seen: ContextVar[httpx.Response | None] = ContextVar("_response_seen", default=None)


async def _see_response(response: httpx.Response) -> None:
    _response_seen.set(response)


class SvixSender(ClientBase):
    """Sends events to Svix over one pool of connections; to be built in the running loop.

    `server_url` None: by the token's region.
    """

    def __init__(self, token: str, server_url: str | None, *, create_applications: bool) -> None:
        # The SDK's time-out is one for each phase, so it only backs up the one around the call.
        options = SvixOptions(server_url=server_url, retry_schedule=[], timeout=SVIX_CALL_SECONDS)
        super().__init__(token, options)
        limits = httpx.Limits(max_connections=_CONNECTIONS, keepalive_expiry=_KEEP_ALIVE_SECONDS)
        # aiohttp beneath httpx: a fifth of the processor time of httpx's own pool at 32 in flight.
        self._http = httpx.AsyncClient(
            transport=AiohttpTransport(limits=limits), event_hooks={"response": [_see_response]}
        )
        self._messages = MessageAsync(self._client, self._http)
        self._create_applications = create_applications

    async def send(self, event: Event, idempotency_key: str) -> Answer:
        """Create the event's message. Sent again under the same key it stays one message."""
        options = MessageCreateOptions(idempotency_key=idempotency_key)
        try:
            message = MessageIn(event_type=event.type, event_id=event.id, payload=event.payload)
            if self._create_applications:
                message.application = ApplicationIn(name=event.project, uid=event.project)
            return await _answer(self._messages.create(event.project, message, options))
        except (PydanticSerializationError, RecursionError):
            return Answer(Verdict.REJECTED, code="unserializable")

    async def find(self, event: Event) -> Answer:
        """Ask for the event's message: ACCEPTED if Svix has it, NOT_FOUND if it hasn't."""
        answer = await _answer(self._messages.get(event.project, event.id, MessageGetOptions()))
        if answer.verdict in {Verdict.CONFLICT, Verdict.REJECTED}:
            return replace(answer, verdict=Verdict.UNAVAILABLE)  # a question settles no event
        return answer

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()


async def _answer(call: Coroutine[Any, Any, MessageOut]) -> Answer:
    """Run one call within its time limit and classify what came back.

    Raises what the SDK raises where it could not serialise the message and so asked nothing.
    """
    _response_seen.set(None)
    message_id = None
    try:
        async with asyncio.timeout(SVIX_CALL_SECONDS):
            message_id = (await call).id
    except (PydanticSerializationError, RecursionError):
        if _response_seen.get() is None:
            raise
    except Exception:  # noqa: BLE001, S110 - whatever the SDK makes of an answer, the wire decides
        pass
    return classify(_response_seen.get(), message_id)


def classify(response: httpx.Response | None, message_id: str | None = None) -> Answer:
    """What an answer of Svix, or its absence, means."""
    if response is None:
        return Answer(Verdict.UNAVAILABLE)
    error = _Error.read(response)
    return Answer(
        _verdict(response.status_code, error),
        response.status_code,
        code=error.code if error else None,
        locs=error.locs if error else (),
        message_id=message_id,
        retry_after=_retry_after(response.headers.get("retry-after"), datetime.now(UTC)),
    )


def _verdict(status: int, error: "_Error | None") -> Verdict:
    """The first row that fits; `error` is None where the body is not the API's."""
    verdict = Verdict.UNAVAILABLE
    match status:
        case _ if httpx.codes.is_success(status):
            verdict = Verdict.ACCEPTED
        case 429:
            verdict = Verdict.RATE_LIMITED
        case 409:
            verdict = Verdict.CONFLICT
        case 404 if error and error.code == "not_found":
            verdict = Verdict.NOT_FOUND
        case 401 | 402 | 403 | 404 | 405:
            verdict = Verdict.MISCONFIGURED
        case _ if httpx.codes.is_redirect(status):
            verdict = Verdict.MISCONFIGURED
        case 413:
            verdict = Verdict.REJECTED
        case 400 | 422 if error:
            verdict = Verdict.REJECTED
    return verdict


@dataclass(frozen=True, slots=True)
class _Error:
    """What may be repeated of the API's error body: its code, and which fields it minds."""

    code: str | None
    locs: tuple[str, ...]

    @classmethod
    def read(cls, response: httpx.Response) -> "_Error | None":
        """None where the body is not the API's: `{"code", "detail"}`, or a list of details."""
        try:
            body = response.json()
        except (ValueError, RecursionError, httpx.ResponseNotRead):
            return None
        if not isinstance(body, dict):
            return None
        code, details = body.get("code"), body.get("detail")
        if isinstance(code, str) and _CODE.fullmatch(code):
            return cls(code, ())
        if isinstance(details, list) and details and all(isinstance(d, dict) for d in details):
            locs = (".".join(map(str, d["loc"])) for d in details if isinstance(d.get("loc"), list))
            return cls(None, tuple(loc for loc in locs if _LOC.fullmatch(loc))[:_LOCS_KEPT])
        return None


def _retry_after(text: str | None, now: datetime) -> float | None:
    """Seconds to wait, from either form of the header; None where it says nothing usable.

    Source: https://www.rfc-editor.org/rfc/rfc9110#field.retry-after
    """
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = (email.utils.parsedate_to_datetime(text) - now).total_seconds()
        except (TypeError, ValueError):  # no date, or one without a time zone
            return None
    return seconds if 0 <= seconds < math.inf else None
