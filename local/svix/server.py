"""An HTTP server that can stop listening, listen on its port again, and reset a connection.

It runs uvicorn's protocol on a socket of its own, because uvicorn's server can't start twice.
"""

import asyncio
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.server import ServerState

_KEEP_ALIVE_SECONDS = 75  # longer than any client here keeps an idle connection
_BACKLOG = 2048  # connections that wait to be accepted
_GRACE_SECONDS = 0.1  # for answers under way when it closes


class Server:
    """Serves an ASGI app on loopback. Start it in the running loop. `port` 0: any free port."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._config = Config(
            _with_resets(app, self),
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        )
        self._config.load()
        self._state = ServerState()
        self._listener: asyncio.Server | None = None
        self.port = port

    async def start(self) -> None:
        """Listen, on the same port as before."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            self._protocol, "127.0.0.1", self.port, reuse_address=True, backlog=_BACKLOG
        )
        self.port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse new connections, and reset the open ones."""
        if self._listener is None:
            return
        self._listener.close()
        self._listener = None
        for connection in tuple(self._state.connections):
            _transport(connection).abort()

    async def close(self) -> None:
        """Stop for good."""
        if self._state.tasks:
            await asyncio.wait(self._state.tasks, timeout=_GRACE_SECONDS)
        await self.stop()
        for task in tuple(self._state.tasks):
            task.cancel()
        await asyncio.gather(*self._state.tasks, return_exceptions=True)

    def reset(self, client: Any) -> None:
        """Reset the connection from this address, without an answer."""
        for connection in tuple(self._state.connections):
            if getattr(connection, "client", None) == client:
                _transport(connection).abort()

    def _protocol(self) -> asyncio.Protocol:
        arguments: dict[str, Any] = {
            "config": self._config,
            "server_state": self._state,
            "app_state": {},
        }
        return AutoHTTPProtocol(**arguments)


class Reset(Response):
    """No answer: the connection is reset."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's
        """Reset the connection. Returns when the server has noticed the disconnect."""
        scope["server_of_connection"].reset(scope["client"])
        while (await receive())["type"] != "http.disconnect":
            pass


class Drip(Reset):
    """A 202 with a long body, sent byte by byte. When `ends` is set, the connection is reset."""

    def __init__(self, ends: asyncio.Event) -> None:
        super().__init__(status_code=202)
        self._ends = ends

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the body, then reset the connection."""
        headers = [(b"content-length", b"1000000"), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        while not self._ends.is_set():
            await send({"type": "http.response.body", "body": b" ", "more_body": True})
            await asyncio.sleep(0.05)
        await super().__call__(scope, receive, send)


def _with_resets(app: ASGIApp, server: Server) -> ASGIApp:
    """The app, which may answer with `Reset`. A slash at the end of a path is ignored."""

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        scope["server_of_connection"] = server
        scope["path"] = scope["path"].rstrip("/") or "/"
        await app(scope, receive, send)

    return served


def _transport(connection: Any) -> asyncio.Transport:
    transport: asyncio.Transport = connection.transport
    return transport
