"""The customers' webhook endpoints: a server that keeps every webhook it receives.

`local/customer.py` runs it in a thread, for tests that have no event loop.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Self

from starlette.types import Receive, Scope, Send
from svix.webhooks import Webhook as Signature
from svix.webhooks import WebhookVerificationError

from local.svix.server import Server


@dataclass(frozen=True, slots=True)
class Webhook:
    """One request that reached an endpoint. `at` is in seconds since 1970."""

    path: str
    message_id: str
    """The `svix-id` header. A receiver recognises a repeated message by it."""
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    at: float
    status: int

    @property
    def is_taken(self) -> bool:
        """Whether the endpoint answered 2xx, so that the customer has the webhook."""
        return HTTPStatus.OK <= self.status < HTTPStatus.MULTIPLE_CHOICES

    def is_signed(self, secret: str) -> bool:
        """Whether the signature matches the endpoint's secret, by a customer's own check."""
        try:
            Signature(secret).verify(self.body, dict(self.headers))
        except WebhookVerificationError:
            return False
        return True


class Endpoints:
    """All customers' endpoints on one port of loopback; an async context manager.

    Every path is an endpoint. `answers` holds the status for individual paths, and `answer` is the
    status for all other paths. Both may be changed at any time.
    """

    def __init__(self, answer: int = HTTPStatus.NO_CONTENT) -> None:
        self.answer = answer
        self.answers: dict[str, int] = {}
        self.received: list[Webhook] = []
        self._server = Server(self._take, 0)
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.close()

    @property
    def url(self) -> str:
        """The base URL. Every path below it is an endpoint."""
        return f"http://127.0.0.1:{self._server.port}"

    async def wait(self, count: int, path: str | None = None, limit: float = 30.0) -> list[Webhook]:
        """Wait until `count` webhooks have arrived (on this path), and return them.

        Raises TimeoutError after `limit` seconds.
        """
        async with asyncio.timeout(limit):
            while len(arrived := [w for w in self.received if path in {None, w.path}]) < count:
                await self._changed.wait()
        return arrived

    async def _take(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = bytearray(), True
        while more:
            part = await receive()
            body += part.get("body", b"")
            more = part.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        status = self.answers.get(scope["path"], self.answer)
        webhook = Webhook(
            scope["path"], headers.get("svix-id", ""), bytes(body), headers, time.time(), status
        )
        self.received.append(webhook)
        self._changed.set()
        self._changed = asyncio.Event()
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body"})
