"""The customers' webhook endpoints, in the running loop: they take what Svix sends on.

`local/customer.py` is the same for tests without a loop. Its threads are too slow for two thousand
webhooks beside a busy loop.
"""

import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Self

from starlette.types import Receive, Scope, Send

from local.svix.server import Server


@dataclass(frozen=True, slots=True)
class Webhook:
    """One request that reached an endpoint. `at` is in seconds since 1970."""

    message_id: str
    at: float
    status: int

    @property
    def is_taken(self) -> bool:
        """Whether the customer has it now."""
        return HTTPStatus.OK <= self.status < HTTPStatus.MULTIPLE_CHOICES


class Endpoints:
    """All customers' endpoints on one port of loopback; an async context manager.

    Every path is an endpoint. `answer` is the status of each answer, and may be changed.
    """

    def __init__(self, answer: int = HTTPStatus.NO_CONTENT) -> None:
        self.answer = answer
        self.received: list[Webhook] = []
        self._server = Server(self._take, 0)

    async def __aenter__(self) -> Self:
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.close()

    @property
    def url(self) -> str:
        """Where Svix should send to; any path may be added."""
        return f"http://127.0.0.1:{self._server.port}"

    async def _take(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        message_id = dict(scope["headers"]).get(b"svix-id", b"").decode()
        status = self.answer
        self.received.append(Webhook(message_id, time.time(), status))
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body"})
