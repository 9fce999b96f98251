"""Sends each message to each endpoint that takes it, signed, with retries on a schedule.

Only endpoints on loopback are called. An attempt at any other endpoint fails with code 0, like an
attempt at an endpoint that can't be reached.
"""

import asyncio
import ipaddress
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import RequestError
from svix.webhooks import Webhook

from local.behaviour import Behaviour
from local.svix import ids
from local.svix.store import Attempt, Endpoint, Store, StoredMessage, is_success

_AT_ONCE = 32  # calls to endpoints; a worker of the real Svix has a limit too
_CALL_LIMIT = timedelta(seconds=30)  # as in the real Svix
_ELSEWHERE = "not sent: the simulator sends to loopback addresses only"


class Dispatcher:
    """Sends messages to endpoints. Build it in the running loop.

    `behaviour` and `now` are functions, because what they return changes while it runs.
    """

    def __init__(
        self, store: Store, behaviour: Callable[[], Behaviour], now: Callable[[], datetime]
    ) -> None:
        self._store = store
        self._behaviour = behaviour
        self._now = now
        self._client = _client()
        self._at_once = asyncio.Semaphore(_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, message: StoredMessage) -> None:
        """Send a new message to each endpoint that takes it, with retries."""
        application = self._store.find_application(message.app)
        for endpoint in list(application.endpoints.values()) if application else ():
            if endpoint.takes(message):
                self._start(message, endpoint, is_manual=False)

    def resend(self, message: StoredMessage, endpoint: Endpoint) -> None:
        """Send a message to an endpoint again, even if the endpoint's filters exclude it.

        A disabled endpoint gets nothing.
        """
        self._start(message, endpoint, is_manual=True)

    def forget(self) -> None:
        """Cancel everything that is under way."""
        for task in self._tasks:
            task.cancel()

    async def close(self) -> None:
        """Cancel everything that is under way, and close the connections."""
        self.forget()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.close()

    def _start(self, message: StoredMessage, endpoint: Endpoint, *, is_manual: bool) -> None:
        task = asyncio.create_task(self._deliver(message, endpoint, is_manual=is_manual))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(
        self, message: StoredMessage, endpoint: Endpoint, *, is_manual: bool
    ) -> None:
        tries = 0
        while endpoint.is_live and self._store.find_application(message.app):
            async with self._at_once:
                started_at, started = self._now(), time.monotonic()
                code, response = await self._call(message, endpoint)
            schedule = () if is_manual else self._behaviour().retry_schedule
            delay = schedule[tries] if not is_success(code) and tries < len(schedule) else None
            tries += 1
            self._store.add_attempt(
                Attempt(
                    ids.new("atmpt_", started_at),
                    message.id,
                    endpoint.id,
                    endpoint.url,
                    code,
                    response,
                    time.monotonic() - started,
                    is_manual,
                    started_at,
                    None if delay is None else self._now() + timedelta(seconds=delay),
                )
            )
            if delay is None:
                return
            await asyncio.sleep(delay)

    async def _call(self, message: StoredMessage, endpoint: Endpoint) -> tuple[int, str]:
        """The endpoint's status and answer; 0 and the reason if it gave no answer."""
        if not _is_loopback(endpoint.url):
            return 0, _ELSEWHERE
        at = self._now()
        headers = {
            "content-type": "application/json",
            "svix-id": message.id,
            "svix-timestamp": str(int(at.timestamp())),
            "svix-signature": Webhook(endpoint.secret).sign(message.id, at, message.text),
        }
        request = self._client.post(endpoint.url).headers(headers).body_text(message.text)
        try:
            answer = await request.build().send()
            return answer.status, await answer.text()
        except RequestError as failure:
            return 0, type(failure).__name__


def _client() -> Client:
    return ClientBuilder().no_proxy().follow_redirects(enable=False).timeout(_CALL_LIMIT).build()


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
