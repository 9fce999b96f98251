"""A worker in this process, for suites that need no server, or that make many requests at once."""

import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Iterator

from relay.config import Settings
from relay.envelope import Names
from relay.ledger import Archive
from relay.outcome import Result
from relay.worker import Worker
from tests.function import JSON


@contextlib.contextmanager
def ignoring_sigterm() -> Iterator[None]:
    """Ignore SIGTERM in this process.

    A worker installs a handler of its own, which also calls the handler from before.
    """
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.asynccontextmanager
async def running_worker(
    settings: Settings, open_ledger: Callable[[], Archive]
) -> AsyncIterator[Worker]:
    """A worker, which is closed at the end."""
    with ignoring_sigterm():
        worker = Worker(settings, open_ledger)
        try:
            yield worker
        finally:
            await worker.close()


async def handle(worker: Worker, body: bytes, **headers: str) -> tuple[Result, Names]:
    """Handle one request, whose body comes in one chunk."""

    async def chunks() -> AsyncIterator[bytes]:
        yield body

    declared = JSON | {"content-length": str(len(body))} | headers
    return await worker.handle(chunks(), declared)
