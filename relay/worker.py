"""One worker's relay: its clients, built on first use, the way of a request, and its end.

Built on first use because the framework imports the source in one process and serves in a fork
of it, and a network client does not survive the fork. Nothing is decided here.
"""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from functools import partial
from types import FrameType

from relay.config import Settings
from relay.delivery import Delivery
from relay.envelope import Event, Malformed, Source, read
from relay.ledger import Archive, Ledger
from relay.logs import DeliveryLog
from relay.outcome import Outcome, Result
from relay.pacing import Pacer
from relay.sender import SvixSender

_LAST_CALL_SECONDS = 8.0
"""What calls in flight have left after SIGTERM: Cloud Run kills after 10 s, and an answer and a
release take a moment (https://cloud.google.com/run/docs/container-contract#instance-shutdown)."""


def ledger_opener(settings: Settings) -> Callable[[], Archive]:
    """Import the ledger that the settings name; what is returned opens it, in a running loop."""
    lease = timedelta(seconds=settings.lease)
    if settings.ledger_path is not None:
        from relay.ledger.sqlite import SqliteLedger  # noqa: PLC0415 - only one of the two is loaded

        return partial(SqliteLedger, settings.ledger_path, lease)
    from relay.ledger.firestore import FirestoreLedger  # noqa: PLC0415 - only one of the two is loaded

    project, database = settings.google_cloud_project, settings.firestore_database
    return partial(FirestoreLedger.connect, project, database, lease)


def svix_sender(settings: Settings) -> SvixSender:
    """The way to the Svix that the settings name. To be called in a running loop."""
    token, url = settings.svix_token, settings.svix_server_url
    return SvixSender(token, url, create_applications=settings.create_applications)


class Relay:
    """Handles the requests of one worker process. To be built in the worker's running loop."""

    def __init__(self, settings: Settings, open_ledger: Callable[[], Ledger]) -> None:
        self._budget = settings.request_budget
        self._pacer = Pacer()
        self._delivery = Delivery(
            ledger=open_ledger(),
            sender=svix_sender(settings),
            pacer=self._pacer,
            clock=time.monotonic,
            create_applications=settings.create_applications,
        )
        self._log = DeliveryLog(settings.log_level, settings.google_cloud_project)
        self._running: set[asyncio.Task[object] | None] = set()
        self._closing = False
        self._close_on_sigterm()

    async def handle(
        self, body: Awaitable[bytes], headers: Mapping[str, str]
    ) -> tuple[Result, Event | None]:
        """One request: its body read, delivered or put aside, and logged.

        `body` may raise `Malformed`. The event is None where none could be taken from the body.
        """
        arrived_at = time.monotonic()
        event, source = None, Source()
        running = asyncio.current_task()
        self._running.add(running)
        try:
            event = read(await body, headers)
            source = event.source
            result = await self._delivery.deliver(event, arrived_at + self._budget)
        except Malformed as fault:
            source = fault.source
            result = await self._delivery.park(_malformed(fault), source)
        except asyncio.CancelledError:
            if not self._closing:
                raise
            result = Result(outcome=Outcome.UNAVAILABLE, detail="shutting down")
        finally:
            self._running.discard(running)
        self._log.write(result, source, event, time.monotonic() - arrived_at, headers)
        return result, event

    def _close_on_sigterm(self) -> None:
        """Close the pacer on SIGTERM, and hand the signal on to the server.

        Neither the framework nor the server tells a running handler that it has 10 s left.
        """
        loop = asyncio.get_running_loop()
        served_by = signal.getsignal(signal.SIGTERM)

        def on_sigterm(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._close, loop)
            if callable(served_by):
                served_by(number, frame)

        signal.signal(signal.SIGTERM, on_sigterm)

    def _close(self, loop: asyncio.AbstractEventLoop) -> None:
        self._closing = True
        self._pacer.close()
        loop.call_later(_LAST_CALL_SECONDS, self._cancel_running)

    def _cancel_running(self) -> None:
        for task in filter(None, self._running):
            task.cancel()


def _malformed(fault: Malformed) -> Result:
    return Result(outcome=Outcome.MALFORMED, detail=fault.detail, status_override=fault.status)
