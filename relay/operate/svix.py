"""What Svix says about messages, endpoints and attempts: reading only.

Reading may take its time: a 429 and passing faults are waited out. What remains is `SvixSilent`,
worded for the operator; of Svix's own words only status and code are repeated.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from typing import Protocol, TypeVar

import httpx
from pydantic import ValidationError
from svix.api import (
    ApplicationListOptions,
    EndpointListOptions,
    MessageAttemptListByEndpointOptions,
    MessageAttemptListByMsgOptions,
    MessageListOptions,
    SvixAsync,
    SvixOptions,
)
from svix.exceptions import HttpError
from svix.models import (
    ApplicationOut,
    EndpointOut,
    MessageAttemptOut,
    MessageEndpointOut,
    MessageOut,
)

_PAGE = 250  # Svix's largest
_CALL_SECONDS = 30.0
_BACK_OFFS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds
_TOO_MANY, _NOT_FOUND = 429, 404

_T = TypeVar("_T")
_Item = TypeVar("_Item")


class _Page(Protocol[_Item]):
    data: list[_Item]
    iterator: str | None
    done: bool


class SvixSilent(Exception):
    """Svix could not be asked; the text says why, and what to do."""


class SvixView:
    """Reads from Svix. To be built in the running loop."""

    def __init__(self, token: str, server_url: str | None) -> None:
        self._svix = SvixAsync(token, SvixOptions(server_url=server_url))

    async def message(self, project: str, event_id: str) -> MessageOut | None:
        """The event's message, without its payload; None where Svix has none."""
        return await _ask(lambda: self._svix.message.get(project, event_id))

    async def destinations(self, project: str, message_id: str) -> list[MessageEndpointOut]:
        """How it stands between a message and each endpoint it was attempted at."""
        listing = self._svix.message_attempt.list_attempted_destinations
        found = await _ask(lambda: listing(project, message_id))
        return [] if found is None else found.data

    async def attempts(self, project: str, message_id: str) -> list[MessageAttemptOut]:
        """A message's latest attempts, newest first."""
        listing = self._svix.message_attempt.list_by_msg
        options = MessageAttemptListByMsgOptions(limit=_PAGE)
        found = await _ask(lambda: listing(project, message_id, options))
        return [] if found is None else found.data

    def applications(self) -> AsyncIterator[ApplicationOut]:
        """All there are."""
        listing = self._svix.application.list
        return _all(lambda after: listing(ApplicationListOptions(limit=_PAGE, iterator=after)))

    def messages(self, project: str, since: datetime) -> AsyncIterator[MessageOut]:
        """An application's messages since then, without their payloads."""
        listing = self._svix.message.list
        return _all(
            lambda after: listing(
                project, MessageListOptions(limit=_PAGE, iterator=after, after=since)
            )
        )

    def endpoints(self, project: str) -> AsyncIterator[EndpointOut]:
        """An application's endpoints."""
        listing = self._svix.endpoint.list
        return _all(lambda after: listing(project, EndpointListOptions(_PAGE, after)))

    def attempts_at(
        self, project: str, endpoint_id: str, since: datetime
    ) -> AsyncIterator[MessageAttemptOut]:
        """What was attempted at one endpoint since then."""
        listing = self._svix.message_attempt.list_by_endpoint
        return _all(
            lambda after: listing(
                project,
                endpoint_id,
                MessageAttemptListByEndpointOptions(limit=_PAGE, iterator=after, after=since),
            )
        )


async def _all(
    listing: Callable[[str | None], Awaitable[_Page[_Item]]],
) -> AsyncIterator[_Item]:
    """What a listing has, page after page; nothing where the application is not there."""
    after: str | None = None
    while True:
        position = after
        page = await _ask(lambda: listing(position))  # noqa: B023 - awaited in this round
        if page is None:
            return
        for item in page.data:
            yield item
        if page.done or not page.iterator:
            return
        after = page.iterator


async def _ask(call: Callable[[], Awaitable[_T]]) -> _T | None:
    """One call's answer; None for Svix's 404. Raises `SvixSilent`."""
    for back_off in (*_BACK_OFFS, None):
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                return await call()
        except HttpError as error:
            if error.status_code == _NOT_FOUND and error.code == "not_found":
                return None
            if error.status_code != _TOO_MANY or back_off is None:
                raise SvixSilent(_words_for(error.status_code)) from None
        except (httpx.RequestError, TimeoutError) as failure:
            if back_off is None or isinstance(failure, httpx.ConnectError):
                raise SvixSilent(
                    f"Svix can't be reached ({type(failure).__name__}): check SVIX_SERVER_URL, "
                    "the network, and https://status.svix.com"
                ) from None
        except (ValueError, TypeError, AttributeError, ValidationError):
            # What the SDK raises for a body that is not the API's.
            raise SvixSilent("what answers is not Svix's API: check SVIX_SERVER_URL") from None
        await asyncio.sleep(back_off)
    raise AssertionError  # the last time round returns or raises


def _words_for(status: int) -> str:
    if status in {401, 403}:
        return f"Svix does not take the token ({status}): check SVIX_TOKEN and SVIX_SERVER_URL"
    if status == _TOO_MANY:
        return "Svix keeps refusing (429): its rate limit is used up; try again in a minute"
    return f"Svix answered {status}: look at https://status.svix.com and try again"
