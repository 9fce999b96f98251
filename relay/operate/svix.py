"""What Svix says about messages, endpoints and attempts; and a message sent to an endpoint again.

Listings are walked newest first, by their `iterator`, until the time that is asked. `after` is
never passed: with it Svix begins at the oldest page, and the `iterator` leads away from what is
asked. A test on a real Svix pins that.

A 429 and passing faults are waited out for as long as the view's patience. What remains is
`SvixUnavailable`, worded for the operator; of Svix's own words only the status is repeated.
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
_ORDERED_WITHIN = timedelta(seconds=1)  # message ids, by which Svix sorts, are this exact at least
_FIRST_BACK_OFF = 1.0  # seconds, doubled by each failure
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
    """Svix could not be asked; the text says why, and what to do."""


Turn = AbstractAsyncContextManager[Callable[[Answer], None]]
"""The right to make one call, which begins at once. What is yielded takes the call's answer."""

Turns = Callable[[], Turn]
"""Gives turns, one for each call. Its `SvixUnavailable` ends what was asked."""


class Pace:
    """At most `rate` calls a second, so that the function keeps Svix's limit to itself."""

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
    """Asks Svix; to be built in the running loop, and closed. An async context manager.

    `patience` is how long one question is asked again while Svix fails, in seconds. `waiting` is
    told of each failure that is waited out, and for how long.
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
        """Return where Svix takes the token; raise `SvixUnavailable` where it does not."""
        options = ApplicationListOptions(limit=1)
        await self._ask(lambda wire: ApplicationAsync(self._client, wire).list(options))

    async def message(self, project: str, event_id: str) -> Message | None:
        """The event's message; None where Svix has none."""
        if not (_NAME.fullmatch(project) and _NAME.fullmatch(event_id)):
            return None  # Svix takes no such name, and the SDK would put it into the URL as it is
        found = await self._ask(
            lambda wire: MessageAsync(self._client, wire).get(project, event_id)
        )
        return None if found is None else _message(found)

    async def messages(self, project: str, since: datetime) -> AsyncIterator[Message]:
        """An application's messages, newest first, as far back as `since` at least."""

        def listing(wire: Any, iterator: str | None) -> Awaitable[_Page]:
            options = MessageListOptions(limit=_PAGE, iterator=iterator)
            return MessageAsync(self._client, wire).list(project, options)

        async for found in self._walk(listing):
            if found.timestamp < since - _ORDERED_WITHIN:
                return
            yield _message(found)

    async def endpoints(self, project: str) -> list[Endpoint]:
        """An application's endpoints."""

        def listing(wire: Any, iterator: str | None) -> Awaitable[_Page]:
            options = EndpointListOptions(limit=_PAGE, iterator=iterator)
            return EndpointAsync(self._client, wire).list(project, options)

        return [_endpoint(found) async for found in self._walk(listing)]

    async def attempts(self, project: str, message_id: str) -> list[Attempt]:
        """What was attempted with a message, newest first."""

        def listing(wire: Any, iterator: str | None) -> Awaitable[_Page]:
            options = MessageAttemptListByMsgOptions(limit=_PAGE, iterator=iterator)
            return MessageAttemptAsync(self._client, wire).list_by_msg(project, message_id, options)

        return [_attempt(found) async for found in self._walk(listing)]

    async def next_attempts(self, project: str, message_id: str) -> dict[str, datetime]:
        """When Svix tries a message again, for each endpoint where it will."""
        options = MessageAttemptListAttemptedDestinationsOptions(limit=_PAGE)
        page = await self._ask(
            lambda wire: MessageAttemptAsync(self._client, wire).list_attempted_destinations(
                project, message_id, options
            )
        )
        found = page.data if page else []
        return {each.id: each.next_attempt for each in found if each.next_attempt}

    async def resend(self, project: str, message_id: str, endpoint_id: str) -> bool:
        """Have Svix send a message to an endpoint; False where it does not know one of them."""
        answer = await self._ask(
            lambda wire: MessageAttemptAsync(self._client, wire).resend(
                project, message_id, endpoint_id
            )
        )
        return answer is not None

    async def _walk(
        self, listing: Callable[[Any, str | None], Awaitable[_Page]]
    ) -> AsyncIterator[Any]:
        """What a listing has, page after page; nothing where the application is not there."""
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
        """One question's answer; None for the API's own 404. Raises `SvixUnavailable`."""
        give_up_at = time.monotonic() + self._patience
        back_off = _FIRST_BACK_OFF
        while True:
            asked = await self._ask_once(call)
            if asked.settled:
                return asked.value
            wait = max(back_off, asked.answer.retry_after or 0.0)
            if (
                asked.answer.verdict is Verdict.MISCONFIGURED
                or time.monotonic() + wait > give_up_at
            ):
                raise SvixUnavailable(_words_for(asked.answer))
            self._waiting(str(asked.answer), wait)
            await asyncio.sleep(wait)
            back_off = min(2 * back_off, _LONGEST_BACK_OFF)

    async def _ask_once(self, question: Callable[[Any], Awaitable[_T]]) -> "_Asked[_T]":
        call = self._http.call()
        async with self._turns() as report:
            try:
                asked = _Asked(Answer(Call.ASK, Verdict.ACCEPTED), await question(call))
            except HttpError as error:
                asked = _Asked(_answer(call, error.code))
            except (PyreqwestError, HTTPValidationError, ValueError, TypeError, AttributeError):
                # The last four are what the SDK raises for a body that is not the API's.
                asked = _Asked(_answer(call))
            report(asked.answer)
        return asked


class _Asked(Generic[_T]):
    """One question's answer, and what it holds."""

    def __init__(self, answer: Answer, value: _T | None = None) -> None:
        self.answer = answer
        self.value = value
        self.settled = answer.verdict in {Verdict.ACCEPTED, Verdict.MISSING}


def _answer(call: SvixCall, code: str | None = None) -> Answer:
    """What came back instead of the API's answer to the question."""
    if call.failure is not None or call.answer is None:
        return Answer(Call.ASK, Verdict.UNAVAILABLE, failure=call.failure)
    status, retry_after = call.answer.status_code, None
    with contextlib.suppress(ValueError):
        retry_after = float(call.answer.retry_after or "")
    verdict = _verdict(status, code)
    return Answer(Call.ASK, verdict, status, retry_after=retry_after)


def _verdict(status: int, code: str | None) -> Verdict:
    """What a status means for a question that was not answered as the API does."""
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


def _words_for(answer: Answer) -> str:
    if answer.status in {401, 403}:
        return (
            f"Svix does not take the token ({answer.status}): check SVIX_TOKEN and SVIX_SERVER_URL"
        )
    if answer.verdict is Verdict.MISCONFIGURED:
        return f"What answers is not Svix's API ({answer.status}): check SVIX_SERVER_URL"
    if answer.verdict is Verdict.RATE_LIMITED:
        return "Svix keeps refusing (429): its rate limit is used up; try again later"
    if answer.status is None:
        return (
            f"Svix can't be reached ({answer}): check SVIX_SERVER_URL, the network, and "
            "https://status.svix.com"
        )
    return f"Svix answers {answer.status}: look at https://status.svix.com and try again"


# -- the SDK's models, as far as they are needed


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
        http=found.response_status_code or None,  # 0: nobody answered
        at=found.timestamp,
    )


def host(url: str) -> str:
    """Where an endpoint is; the rest of its URL may be the customer's secret."""
    try:
        return urlsplit(url).hostname or "?"
    except ValueError:  # Svix's idea of a URL is wider than Python's
        return "?"
