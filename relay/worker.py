"""Runs one worker process: its clients, its requests and its shutdown.

The clients are created on first use. The framework imports this code in one process and serves in a
fork of it, and a network client does not survive the fork.
"""

import asyncio
import contextlib
import gc
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import FrameType

from relay.config import ATTEMPT_SECONDS, Settings
from relay.delivery import Delivery
from relay.envelope import Names, Refused, Source, source_of
from relay.intake import Intake, NotAdmitted
from relay.ledger import Archive, LedgerMisconfigured
from relay.logs import Log
from relay.outcome import PARKED_OUTCOMES, Outcome, Result
from relay.pacing import Pacer
from relay.sender import SvixSender

_LAST_ATTEMPT_SECONDS = 5.0
"""After SIGTERM, turns are given for this long. Then every request that neither holds a claim nor
is asking for one is answered."""

_LAST_CALL_SECONDS = 8.0
"""After SIGTERM, attempts under way may go on for this long. Cloud Run kills the process after 10
s, and it takes a moment to release the claim and to answer the request
(https://cloud.google.com/run/docs/container-contract#instance-shutdown)."""

_GARBAGE_THRESHOLD = 10_000
"""The number of new objects after which Python looks for cycles. Two or three events create more
than Python's default of 700."""

_STATE_SECONDS = 1.0  # between two lines with the pacer's state, at DEBUG


def ledger_opener(settings: Settings, *, create: bool) -> Callable[[], Archive]:
    """Import the ledger that the settings name, and return a function that opens it.

    That function must be called in a running loop, and may raise `LedgerMisconfigured`. A SQLite
    ledger opens its file with its first read or write; with `create`, it creates a missing file.
    """
    if settings.ledger_path is not None:
        from relay.ledger.sqlite import SqliteLedger  # noqa: PLC0415 - only one of the two is loaded

        return partial(SqliteLedger, settings.ledger_path, create=create)
    from relay.ledger.firestore import FirestoreLedger  # noqa: PLC0415 - only one of the two is loaded

    project, database = settings.google_cloud_project, settings.firestore_database
    return partial(FirestoreLedger.connect, project, database)


def svix_sender(settings: Settings) -> SvixSender:
    """A sender to the Svix that the settings name. Must be called in a running loop."""
    token, url = settings.svix_token, settings.svix_server_url
    return SvixSender(token, url, create_applications=settings.create_applications)


def collect_less_garbage() -> None:
    """Make the garbage collector ignore all objects that exist now, and run less often.

    The imported modules have 100,000 objects. Full collections that visited all of them took a
    tenth of an event's processor time. To be called once, when a process begins to serve.
    """
    gc.freeze()
    gc.set_threshold(_GARBAGE_THRESHOLD)


class Worker:
    """Handles the requests of one worker process. Must be created in its running loop."""

    def __init__(self, settings: Settings, open_ledger: Callable[[], Archive]) -> None:
        self._settings = settings
        self._open_ledger = open_ledger
        self._intake = Intake(settings.bodies_mib * 2**20, time.monotonic)
        self._pacer = Pacer()
        self._log = Log(settings.log_level, settings.google_cloud_project)
        self._sender = svix_sender(settings)
        self._archive: Archive
        """Opened by `_get_delivery`, together with the delivery."""
        self._delivery: Delivery | None = None
        self._running: set[asyncio.Task[object] | None] = set()
        self._closing = False
        self._close_on_sigterm()
        self._state_log = asyncio.create_task(self._log_state()) if self._log.is_debug else None

    async def handle(
        self, chunks: AsyncIterator[bytes], headers: Mapping[str, str]
    ) -> tuple[Result, Names]:
        """Answer one request: read its body, deliver or park its event, and log the result.

        The keys of `headers` are lower-case. Also returns the event's id, type and project, as far
        as they could be read.
        """
        arrived_at = time.monotonic()
        known = _Known()
        task = asyncio.current_task()
        self._running.add(task)
        try:
            deadline = arrived_at + self._settings.request_budget
            result = await self._result(known, chunks, headers, arrived_at, deadline)
        except asyncio.CancelledError:
            if not self._closing:
                raise
            result = Result(outcome=Outcome.UNAVAILABLE, detail="shutting down")
        finally:
            self._running.discard(task)
        if known.source.pushed and result.acknowledges:
            self._pacer.nacks.acked()
        self._log.write(result, known.source, known.names, time.monotonic() - arrived_at, headers)
        return result, known.names

    async def _result(
        self,
        known: "_Known",
        chunks: AsyncIterator[bytes],
        headers: Mapping[str, str],
        arrived_at: float,
        deadline: float,
    ) -> Result:
        """The request's result. Fills in `known`. Raises only if cancelled."""
        # A body keeps its share of the memory while its request waits to be nacked.
        async with contextlib.AsyncExitStack() as admitted:
            try:
                admission = await admitted.enter_async_context(
                    self._intake.admit(headers, deadline - ATTEMPT_SECONDS)
                )
                try:
                    event = await admission.event(chunks, self._settings.event_tags)
                    known.source, known.names = event.source, event.names
                    self._log.step("arrived", event)
                    task = asyncio.current_task()
                    return await self._get_delivery().deliver(event, arrived_at, deadline, task)
                except Refused as refused:
                    known.source, known.names = refused.source, refused.names
                    result = await self._refuse(refused, deadline)
            except NotAdmitted as failure:
                known.source = source_of(headers)
                result = Result(outcome=Outcome.UNAVAILABLE, detail=str(failure))
            except LedgerMisconfigured as failure:
                result = Result(outcome=Outcome.MISCONFIGURED, detail=f"the ledger: {failure}")
            except Exception as fault:  # noqa: BLE001 - each request gets an outcome and a log line
                result = Result(outcome=Outcome.UNAVAILABLE, detail=_place_of(fault))
            # An incomplete body is nacked immediately. Its sender is slow or gone, and the instance
            # can handle another request instead.
            is_nack = known.source.pushed and not result.acknowledges
            if is_nack and result.outcome is not Outcome.INCOMPLETE:
                await self._pacer.nacks.space(deadline)
            return result

    async def _refuse(self, refused: Refused, deadline: float) -> Result:
        result = Result(outcome=refused.outcome, detail=refused.detail, code=refused.code)
        if refused.outcome not in PARKED_OUTCOMES:
            return result
        return await self._get_delivery().parking.park(
            result, refused.source, refused.names, deadline
        )

    async def reconcile(self) -> dict[str, object]:
        """Compare the ledger with Svix while deliveries go on. Logs the report and returns it."""
        # Imported here to keep cold starts short.
        from relay.operate.scheduled import reconcile  # noqa: PLC0415 - see above

        task = asyncio.current_task()
        self._running.add(task)
        seconds = self._settings.request_budget - ATTEMPT_SECONDS
        try:
            self._get_delivery()
            report = await reconcile(self._settings, self._archive, self._pacer, seconds)
            counts, severity = report.as_log(), report.severity
        except LedgerMisconfigured as failure:
            counts, severity = {"complete": False, "failure": f"the ledger: {failure}"}, "CRITICAL"
        except asyncio.CancelledError:
            if not self._closing:
                raise
            counts, severity = {"complete": False, "failure": "shutting down"}, "INFO"
        finally:
            self._running.discard(task)
        self._log.reconciliation(counts, severity)
        return counts

    def _get_delivery(self) -> Delivery:
        """The delivery. The first call opens the ledger. Raises `LedgerMisconfigured`."""
        if self._delivery is None:
            self._archive = self._open_ledger()
            self._delivery = Delivery(
                ledger=self._archive,
                sender=self._sender,
                pacer=self._pacer,
                observe=self._log.step,
            )
            self._delivery.closing = self._closing
        return self._delivery

    async def close(self) -> None:
        """Close the connections. Only tests need this, because a process that ends closes them."""
        await self._sender.close()
        if self._delivery is not None:
            await self._delivery.ledger.close()
        if self._state_log is not None:
            self._state_log.cancel()

    async def _log_state(self) -> None:
        while True:
            self._log.pacer(self._pacer.state())
            await asyncio.sleep(_STATE_SECONDS)

    # -- shutdown

    def _close_on_sigterm(self) -> None:
        """Begin the shutdown on SIGTERM, and pass the signal on to the server.

        Neither the framework nor the server tells a running request that it has 10 s left.
        """
        loop = asyncio.get_running_loop()
        previous_handler = signal.getsignal(signal.SIGTERM)

        def on_sigterm(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._close, loop)
            if callable(previous_handler):
                previous_handler(number, frame)

        signal.signal(signal.SIGTERM, on_sigterm)

    def _close(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_later(_LAST_ATTEMPT_SECONDS, self._cancel_waiting)
        loop.call_later(_LAST_CALL_SECONDS, self._cancel, self._running)

    def _cancel_waiting(self) -> None:
        self._closing = True
        attempting: set[object] = set()
        if self._delivery is not None:
            self._delivery.closing = True
            attempting = self._delivery.attempting
        self._cancel(self._running - attempting)

    def _cancel(self, tasks: set[asyncio.Task[object] | None]) -> None:
        for task in filter(None, tasks):
            task.cancel()


@dataclass(slots=True)
class _Known:
    """The source and the names of a request's event, as far as they are known."""

    source: Source = field(default_factory=Source)
    names: Names = field(default_factory=Names)


def _place_of(fault: Exception) -> str:
    """Name the exception and its place in the code."""
    place, trace = "", fault.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        place = f"{code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"a fault in the relay: {type(fault).__name__} at {place}"
