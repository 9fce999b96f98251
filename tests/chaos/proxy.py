"""A TCP proxy that can go down, so that Firestore seems to be down.

The Firestore emulator loses its data when it is stopped; the real Firestore does not. So the
emulator keeps running, and the proxy drops all connections to it instead.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Proxy:
    """While it is up, passes bytes on between `address` and `port`, a loopback port.

    It also listens while it is down. If a server is closed just as a connection comes in, the
    connection stays open for ever (https://github.com/python/cpython/issues/109564).
    """

    def __init__(self, address: str) -> None:
        self._host, _, self._port = address.partition(":")
        self._connections: set[asyncio.Task[None]] = set()
        self._is_up = True
        self._flows = asyncio.Event()
        self._flows.set()
        self.port = 0

    async def listen(self) -> asyncio.Server:
        """Accept connections on a free port."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    def up(self) -> None:
        """Pass connections on."""
        self._is_up = True

    def stall(self) -> None:
        """Keep the connections open, but pass nothing on."""
        self._flows.clear()

    def flow(self) -> None:
        """Pass everything on again, beginning with what was held back."""
        self._flows.set()

    async def down(self) -> None:
        """Drop all open connections, and every new one."""
        self._is_up = False
        for connection in tuple(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, near: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        onward = None
        try:
            if self._is_up:
                far, onward = await asyncio.open_connection(self._host, int(self._port))
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._pass_on(near, onward))
                    both.create_task(self._pass_on(far, answer))
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass  # one side has closed, or the proxy is down
        finally:
            self._connections.discard(task)
            for writer in (answer, onward):
                if writer is not None:
                    writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._flows.wait()
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError("one side has closed the connection, so the proxy closes both")


@contextlib.asynccontextmanager
async def proxying(address: str) -> AsyncIterator[Proxy]:
    """A proxy that is up."""
    proxy = Proxy(address)
    async with await proxy.listen():
        try:
            yield proxy
        finally:
            await proxy.down()
