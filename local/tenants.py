"""The applications that `make run` works with, in the simulator or in a real Svix.

Uses Svix's own SDK, so that the simulator and a real Svix are used in the same way.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from svix.api import (
    ApplicationIn,
    AppPortalAccessIn,
    EndpointIn,
    MessageListOptions,
    SvixAsync,
    SvixOptions,
)
from svix.exceptions import HttpError

_PAGE = 250  # Svix's largest
_NO_PORTAL = "https://docs.svix.com/"  # the open-source server has none, and points to its manual


@dataclass(frozen=True, slots=True)
class Address:
    """Where a Svix is. If `url` is None, the token's region decides."""

    url: str | None
    token: str


class Tenants:
    """The applications of one Svix. An async context manager; build it in the running loop."""

    def __init__(self, address: Address) -> None:
        self._svix = SvixAsync(address.token, SvixOptions(server_url=address.url))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._svix._httpx_client.aclose()  # noqa: SLF001 - the SDK offers no other way

    async def add(self, application: str) -> None:
        """Create an application, as a first message would."""
        await self._svix.application.get_or_create(ApplicationIn(name=application, uid=application))

    async def add_endpoint(self, application: str, url: str) -> None:
        """Create an endpoint that takes every message."""
        await self._svix.endpoint.create(application, EndpointIn(url=url))

    async def secret(self, application: str, url: str) -> str:
        """The signing secret of the endpoint at this URL."""
        endpoints = (await self._svix.endpoint.list(application)).data
        name = next(endpoint.id for endpoint in endpoints if endpoint.url == url)
        return (await self._svix.endpoint.get_secret(application, name)).key

    async def messages(self, applications: Iterable[str]) -> Counter[tuple[str, str | None]]:
        """The number of messages of each application and event id."""
        held: Counter[tuple[str, str | None]] = Counter()
        for application in applications:
            iterator = None
            while True:
                options = MessageListOptions(limit=_PAGE, iterator=iterator, with_content=False)
                page = await self._svix.message.list(application, options)
                held.update((application, message.event_id) for message in page.data)
                iterator = page.iterator
                if page.done:
                    break
        return held

    async def portal(self, application: str) -> str | None:
        """A link to the customer's view in Svix's portal; None if this Svix has no portal."""
        try:
            access = await self._svix.authentication.app_portal_access(
                application, AppPortalAccessIn()
            )
        except HttpError:
            return None
        return None if access.url.startswith(_NO_PORTAL) else access.url

    async def remove(self, application: str) -> None:
        """Delete an application and everything in it."""
        await self._svix.application.delete(application)
