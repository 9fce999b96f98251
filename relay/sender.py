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
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, cast
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx
from aiohttp import ClientSession, TCPConnector
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


class _Call:
    """One call on the wire: what the SDK uses of httpx's client, done by aiohttp's.

    It makes an event a fifth cheaper than httpx's client does with aiohttp beneath it. `response`
    is what has come so far, whatever the SDK makes of it.
    """

    def __init__(self, session: ClientSession) -> None:
        self._session = session
        self.response: httpx.Response | None = None

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: dict[str, str],
        params: dict[str, str] | None = None,
        content: bytes | None = None,
        **_: object,  # the time-out, which is around the call, and redirects: none is followed
    ) -> httpx.Response:
        """Raises aiohttp's errors, which the SDK passes on."""
        async with self._session.request(
            method, url, params=params, headers=headers, data=content, allow_redirects=False
        ) as answer:
            self.response = httpx.Response(answer.status, headers=answer.raw_headers)
            body = await answer.read()
        self.response = httpx.Response(answer.status, headers=answer.raw_headers, content=body)
        return self.response


class SvixSender(ClientBase):
    """Sends events to Svix over one pool of connections; to be built in the running loop.

    `server_url` None: by the token's region.
    """

    def __init__(self, token: str, server_url: str | None, *, create_applications: bool) -> None:
        super().__init__(token, SvixOptions(server_url=server_url, retry_schedule=[]))
        connector = TCPConnector(
            limit=_CONNECTIONS,
            keepalive_timeout=_KEEP_ALIVE_SECONDS,
            ssl=httpx.create_ssl_context(),
        )
        self._session = ClientSession(
            connector=connector,
            proxy=_proxy_for(self._client.base_url),
            auto_decompress=False,  # httpx's response does it
        )
        self._create_applications = create_applications

    async def send(self, event: Event, idempotency_key: str) -> Answer:
        """Create the event's message. Sent again under the same key it stays one message."""
        options = MessageCreateOptions(idempotency_key=idempotency_key)
        try:
            message = MessageIn(event_type=event.type, event_id=event.id, payload=event.payload)
            if self._create_applications:
                message.application = ApplicationIn(name=event.project, uid=event.project)
            return await self._answer(lambda api: api.create(event.project, message, options))
        except (PydanticSerializationError, RecursionError):
            return Answer(Verdict.REJECTED, code="unserializable")

    async def find(self, event: Event) -> Answer:
        """Ask for the event's message: ACCEPTED if Svix has it, NOT_FOUND if it hasn't."""
        options = MessageGetOptions()
        answer = await self._answer(lambda api: api.get(event.project, event.id, options))
        if answer.verdict in {Verdict.CONFLICT, Verdict.REJECTED}:
            return replace(answer, verdict=Verdict.UNAVAILABLE)  # a question settles no event
        return answer

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def _answer(self, ask: Callable[[MessageAsync], Awaitable[MessageOut]]) -> Answer:
        """Run one call within its time limit and classify what came back.

        Raises what the SDK raises where it could not serialise the message and so asked nothing.
        """
        call = _Call(self._session)
        message_id = None
        try:
            async with asyncio.timeout(SVIX_CALL_SECONDS):
                message_id = (await ask(MessageAsync(self._client, cast("Any", call)))).id
        except (PydanticSerializationError, RecursionError):
            if call.response is None:
                raise
        except Exception:  # noqa: BLE001, S110 - whatever the SDK makes of an answer, the wire decides
            pass
        return classify(call.response, message_id)


def _proxy_for(url: str) -> str | None:
    """The environment's proxy, looked up once: aiohttp would look for each call, at 0.3 ms."""
    at = urlsplit(url)
    return None if proxy_bypass(at.netloc) else getproxies().get(at.scheme)


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
        except (ValueError, RecursionError):
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
