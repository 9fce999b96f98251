"""A TCP proxy that can be gone: Firestore "stopped", as its clients see it.

The Firestore emulator forgets everything when it is stopped, which the real one doesn't. So it
stays, and its address goes away instead: connections are reset, and new ones are refused.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Proxy:
    """Passes bytes on between `address` and a `port` of the loopback while it is up."""

    def __init__(self, address: str) -> None:
        self._host, _, self._port = address.partition(":")
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.port = 0

    async def up(self) -> None:
        """Listen, on the same port as before."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def down(self) -> None:
        """Refuse connections, and reset those there are."""
        if self._server is not None:
            self._server.close()
        for connection in tuple(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, near: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        onward = None
        try:
            far, onward = await asyncio.open_connection(self._host, int(self._port))
            async with asyncio.TaskGroup() as both:
                both.create_task(_pass_on(near, onward))
                both.create_task(_pass_on(far, answer))
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass  # either side has gone, or we are down
        finally:
            self._connections.discard(task)
            for writer in (answer, onward):
                if writer is not None:
                    writer.transport.abort()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    raise ConnectionResetError("one side has closed, so both are")


@contextlib.asynccontextmanager
async def proxying(address: str) -> AsyncIterator[Proxy]:
    """A proxy that is up."""
    proxy = Proxy(address)
    await proxy.up()
    try:
        yield proxy
    finally:
        await proxy.down()
