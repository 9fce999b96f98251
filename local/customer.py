"""A customer's webhook endpoint: takes what Svix sends on, and remembers it.

It runs in threads of its own, so that tests and tools can use it with and without an event loop.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from svix.webhooks import Webhook, WebhookVerificationError

_POLL_SECONDS = 0.02  # between looks whether it should end


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request that reached the endpoint."""

    path: str
    id: str
    """Svix's message id, by which a receiver recognises a repeated message."""
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    at: float
    """Monotonic seconds."""

    def is_signed(self, secret: str) -> bool:
        """Whether the signature is that of the endpoint's secret, as a customer would check it."""
        try:
            Webhook(secret).verify(self.body, dict(self.headers))
        except WebhookVerificationError:
            return False
        return True


class Customer:
    """The endpoint's server, on loopback; a context manager. Every path is an endpoint."""

    def __init__(self, answer: int = 204, port: int = 0) -> None:
        self.answer = answer
        """The status of every answer; may be changed at any time."""
        self.arrived: list[Arrival] = []
        self._changed = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_SECONDS,), daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Where Svix should send to; any path may be added."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def wait(self, count: int, limit: float = 30.0) -> list[Arrival]:
        """What has arrived once there are `count` of them. Raises TimeoutError after `limit` s."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.arrived) >= count, limit):
                raise TimeoutError(f"{len(self.arrived)} of {count} arrived in {limit:g} s")
            return list(self.arrived)

    def _take(self, arrival: Arrival) -> int:
        with self._changed:
            self.arrived.append(arrival)
            self._changed.notify_all()
        return self.answer

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        take = self._take

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 75  # seconds that a connection may be idle

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                headers = {name.lower(): value for name, value in self.headers.items()}
                message = headers.get("svix-id", headers.get("webhook-id", ""))
                status = take(Arrival(self.path, message, body, headers, time.monotonic()))
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        return Handler
