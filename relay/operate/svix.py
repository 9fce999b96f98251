"""Asks Svix about messages, endpoints and attempts, and makes it send a message again.

Listings are read newest first, page by page with their `iterator`. The listing of messages is read
only back to `since`. The parameter `after` is not used. With it, the first page has the messages
just after `since`, and the `iterator` then goes back to messages before `since`. So the newer
messages would never be listed. A test on a real Svix checks that.

After a 429 or a failure, `SvixView` retries, for as long as its patience. Then it raises
`SvixUnavailable` with advice for the operator. The message quotes only the status of Svix's answer.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Any, Generic, Protocol, Self, TypeVar
from urllib.parse import urlsplit

from pyreqwest.exceptions import PyreqwestError
from svix.api.application import ApplicationAsync, ApplicationListOptions
from svix.api.endpoint import EndpointAsync, EndpointListOptions
from svix.api.errors.http_error import HttpError
from svix.api.errors.http_validation_error import HTTPValidationError
from svix.api.message import MessageAsync, MessageListOptions
from svix.api.message_attempt import (
    MessageAttemptAsync,
    MessageAttemptListAttemptedDestinationsOptions,
    MessageAttemptListByMsgOptions,
)
from svix.api.svix import ClientBase, SvixOptions
from svix.models import EndpointOut, MessageAttemptOut, MessageOut
from svix.models.message_status import MessageStatus

from relay.operate.whereabouts import Attempt, AttemptStatus, Endpoint, Message
from relay.outcome import Answer, Call, Verdict
from relay.svix_http import SvixCall, SvixHttp

_PAGE = 250  # Svix's largest
_CALL_SECONDS = 30.0
_ORDERED_WITHIN = timedelta(seconds=1)
"""Svix sorts by message id, not by time. So in a listing with the newest first, a message may come
before another that is newer by up to this."""
_FIRST_BACK_OFF = 1.0  # seconds, doubled each time
_LONGEST_BACK_OFF = 30.0
_NAME = re.compile(r"(?!\.{1,2}$)[a-zA-Z0-9_.-]{1,256}")

_T = TypeVar("_T")

_ATTEMPTS = {
    MessageStatus.SUCCESS: AttemptStatus.SUCCEEDED,
    MessageStatus.PENDING: AttemptStatus.UNDER_WAY,
    MessageStatus.SENDING: AttemptStatus.UNDER_WAY,
    MessageStatus.FAIL: AttemptStatus.FAILED,
    MessageStatus.CANCELED: AttemptStatus.CANCELED,
}


class SvixUnavailable(Exception):
    """Svix gave no usable answer. The message says why, and what to do."""


Turn = AbstractAsyncContextManager[Callable[[Answer], None]]
"""The right to make one call now. It yields a function that must be called with the answer."""

Turns = Callable[[], Turn]
"""Gives the turn for one call. Raises `SvixUnavailable` if no turn comes."""


class Pace:
    """Gives at most `rate` turns a second. The function needs the rest of Svix's limit."""

    def __init__(self, rate: float) -> None:
        self._interval = 1 / rate
        self._next_at = time.monotonic()

    @contextlib.asynccontextmanager
    async def __call__(self) -> AsyncIterator[Callable[[Answer], None]]:
        """Wait for the next turn."""
        now = time.monotonic()
        turn_at = max(self._next_at, now)
        self._next_at = turn_at + self._interval
        await asyncio.sleep(turn_at - now)
        yield lambda _: None


class _Page(Protocol):
    @property
    def data(self) -> Sequence[Any]: ...
    @property
    def iterator(self) -> str | None: ...
    @property
    def done(self) -> bool: ...


class SvixView(ClientBase):
    """Asks Svix. An async context manager, which must be created in the running loop.

    `patience` is the number of seconds for which it retries. `waiting` is called before each retry,
    with the failure and the seconds until the retry.
    """

    def __init__(
        self,
        token: str,
        server_url: str | None,
        turns: Turns,
        patience: float,
        waiting: Callable[[str, float], None] = lambda _reason, _seconds: None,
    ) -> None:
        super().__init__(token, SvixOptions(server_url=server_url, retry_schedule=[]))
        self._http = SvixHttp(_CALL_SECONDS)
        self._turns = turns
        self._patience = patience
        self._waiting = waiting

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def accepts_token(self) -> None:
        """Raise `SvixUnavailable` if Svix does not accept the token."""
        options = ApplicationListOptions(limit=1)
        await self._ask(lambda wire: ApplicationAsync(self._client, wire).list(options))

    async def message(self, project: str, event_id: str) -> Message | None:
        """The event's message; None if Svix has none."""
        if not (_NAME.fullmatch(project) and _NAME.fullmatch(event_id)):
            return None  # Svix allows no such name, and the SDK would not escape it in the URL
        found = await self._ask(
            lambda wire: MessageAsync(self._client, wire).get(project, event_id)
        )
        return None if found is None else _message(found)

    async def messages(self, project: str, since: datetime) -> AsyncIterator[Message]:
        """An application's messages, newest first, back to `since` or a little further."""

        def listing(wire: Any, iterator: str | None) -> Awaitable[_Page]:
            options = MessageListOptions(limit=_PAGE, iterator=iterator)
            return MessageAsync(self._client, wire).list(project, options)

        async for found in self._items(listing):
            if found.timestamp < since - _ORDERED_WITHIN:
                return
            yield _message(found)

    async def endpoints(self, project: str) -> list[Endpoint]:
        """An application's endpoints."""

        def listing(wire: Any, iterator: str | None) -> Awaitable[_Page]:
            options = EndpointListOptions(limit=_PAGE, iterator=iterator)
            return EndpointAsync(self._client, wire).list(project, options)

        return [_endpoint(found) async for found in self._items(listing)]

    async def attempts(self, project: str, message_id: str) -> list[Attempt]:
        """The attempts for a message, newest first."""

        def listing(wire: Any, iterator: str | None) -> Awaitable[_Page]:
            options = MessageAttemptListByMsgOptions(limit=_PAGE, iterator=iterator)
            return MessageAttemptAsync(self._client, wire).list_by_msg(project, message_id, options)

        return [_attempt(found) async for found in self._items(listing)]

    async def next_attempts(self, project: str, message_id: str) -> dict[str, datetime]:
        """When Svix will retry a message, by the ids of the endpoints that will get it."""
        options = MessageAttemptListAttemptedDestinationsOptions(limit=_PAGE)
        page = await self._ask(
            lambda wire: MessageAttemptAsync(self._client, wire).list_attempted_destinations(
                project, message_id, options
            )
        )
        found = page.data if page else []
        return {each.id: each.next_attempt for each in found if each.next_attempt}

    async def resend(self, project: str, message_id: str, endpoint_id: str) -> bool:
        """Make Svix send a message to an endpoint. False if Svix does not know one of the two."""
        answer = await self._ask(
            lambda wire: MessageAttemptAsync(self._client, wire).resend(
                project, message_id, endpoint_id
            )
        )
        return answer is not None

    async def _items(
        self, listing: Callable[[Any, str | None], Awaitable[_Page]]
    ) -> AsyncIterator[Any]:
        """The items of a listing, page after page; none if the application does not exist."""
        iterator: str | None = None
        while True:
            position = iterator
            page = await self._ask(lambda wire: listing(wire, position))  # noqa: B023 - awaited here
            if page is None:
                return
            for item in page.data:
                yield item
            if page.done or page.iterator in {None, iterator}:
                return
            iterator = page.iterator

    async def _ask(self, call: Callable[[Any], Awaitable[_T]]) -> _T | None:
        """The answer to one question; None if the API answers `not_found`. Retries.

        Raises `SvixUnavailable`, immediately if a retry can't help.
        """
        give_up_at = time.monotonic() + self._patience
        back_off = _FIRST_BACK_OFF
        while True:
            reply = await self._ask_once(call)
            if reply.is_final:
                return reply.value
            wait = max(back_off, reply.answer.retry_after or 0.0)
            if (
                reply.answer.verdict is Verdict.MISCONFIGURED
                or time.monotonic() + wait > give_up_at
            ):
                raise SvixUnavailable(_advice(reply.answer))
            self._waiting(str(reply.answer), wait)
            await asyncio.sleep(wait)
            back_off = min(2 * back_off, _LONGEST_BACK_OFF)

    async def _ask_once(self, question: Callable[[Any], Awaitable[_T]]) -> "_Reply[_T]":
        call = self._http.call()
        async with self._turns() as report:
            try:
                reply = _Reply(Answer(Call.ASK, Verdict.ACCEPTED), await question(call))
            except HttpError as error:
                reply = _Reply(_failed_answer(call, error.code))
            except (PyreqwestError, HTTPValidationError, ValueError, TypeError, AttributeError):
                # The SDK raises HTTPValidationError for each 422, and the last three for a body
                # that is not the API's.
                reply = _Reply(_failed_answer(call))
            report(reply.answer)
        return reply


class _Reply(Generic[_T]):
    """The classified answer to one question, and its value."""

    def __init__(self, answer: Answer, value: _T | None = None) -> None:
        self.answer = answer
        self.value = value
        self.is_final = answer.verdict in {Verdict.ACCEPTED, Verdict.MISSING}


def _failed_answer(call: SvixCall, code: str | None = None) -> Answer:
    """Classify a call for which the SDK raised. `code` is the error code of the API."""
    if call.failure is not None or call.answer is None:
        return Answer(Call.ASK, Verdict.UNAVAILABLE, failure=call.failure)
    status, retry_after = call.answer.status_code, None
    with contextlib.suppress(ValueError):
        retry_after = float(call.answer.retry_after or "")
    verdict = _verdict(status, code)
    return Answer(Call.ASK, verdict, status, retry_after=retry_after)


def _verdict(status: int, code: str | None) -> Verdict:
    """What the status of a failed call means."""
    match status:
        case 404 if code == "not_found":
            return Verdict.MISSING
        case 429:
            return Verdict.RATE_LIMITED
        case 408 | 409 | 423:
            return Verdict.UNAVAILABLE
        case _ if status >= 500:  # noqa: PLR2004 - HTTP's own boundary
            return Verdict.UNAVAILABLE
        case _:
            return Verdict.MISCONFIGURED


def _advice(answer: Answer) -> str:
    if answer.status in {401, 403}:
        return (
            f"Svix does not accept the token ({answer.status}): "
            "check SVIX_TOKEN and SVIX_SERVER_URL"
        )
    if answer.verdict is Verdict.MISCONFIGURED:
        return f"Svix answered {answer.status}: is SVIX_SERVER_URL the URL of its API?"
    if answer.verdict is Verdict.RATE_LIMITED:
        return "Svix keeps answering 429: its rate limit is used up; try again later"
    if answer.status is None:
        return (
            f"Svix can't be reached ({answer}): check SVIX_SERVER_URL, the network, and "
            "https://status.svix.com"
        )
    return f"Svix answers {answer.status}: look at https://status.svix.com and try again"


# -- from the SDK's models


def _message(found: MessageOut) -> Message:
    return Message(
        id=found.id,
        event_id=found.event_id,
        event_type=found.event_type,
        accepted_at=found.timestamp,
        channels=frozenset(found.channels or ()),
    )


def _endpoint(found: EndpointOut) -> Endpoint:
    return Endpoint(
        id=found.id,
        host=host(found.url),
        created_at=found.created_at,
        disabled=bool(found.disabled),
        event_types=frozenset(found.event_types or ()),
        channels=frozenset(found.channels or ()),
    )


def _attempt(found: MessageAttemptOut) -> Attempt:
    return Attempt(
        endpoint_id=found.endpoint_id,
        host=host(found.url),
        status=_ATTEMPTS[found.status],
        http=found.response_status_code or None,  # 0: no answer
        at=found.timestamp,
    )


def host(url: str) -> str:
    """The host of an endpoint's URL. The rest of the URL may be a secret of the customer."""
    try:
        return urlsplit(url).hostname or "?"
    except ValueError:  # Svix accepts some URLs that Python does not
        return "?"
