"""A customer's webhook endpoint in a thread of its own: for tests that have no event loop."""

import asyncio
import threading
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any, Self, TypeVar

from local.endpoints import Endpoints, Webhook

_T = TypeVar("_T")


class Customer:
    """`Endpoints`, as a plain context manager. `answer` is the status of every answer."""

    def __init__(self, answer: int = HTTPStatus.NO_CONTENT) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._endpoints = Endpoints(answer)

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._endpoints.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._endpoints.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        """The base URL. Every path below it is an endpoint."""
        return self._endpoints.url

    @property
    def answer(self) -> int:
        """The status of every answer; may be changed at any time."""
        return self._endpoints.answer

    @answer.setter
    def answer(self, status: int) -> None:
        self._endpoints.answer = status

    @property
    def arrived(self) -> list[Webhook]:
        """The webhooks that have arrived so far."""
        return list(self._endpoints.received)

    def wait(self, count: int) -> list[Webhook]:
        """Wait until `count` webhooks have arrived; return them. Raises TimeoutError after 30 s."""
        return self._run(self._endpoints.wait(count))

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()
