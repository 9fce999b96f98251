"""Sends several writes or reads of Firestore documents in one call.

A call has a fixed cost in processor time, several times the cost of a document in it. Callers of
`Batches.write` and `Batches.read` do not notice the batch: each write or read has its own
condition, answer and failure. This module knows documents, not events.

A write or a read is sent immediately if few calls are under way. Otherwise it waits. When one of
these calls ends or becomes slow, all that wait are sent as a batch, but at most twenty. When twenty
wait, they are also sent. At most `MANY` batches are under way.

A call has a short timeout, and Google's library does not retry it. A write that was aborted, or
whose answer was lost, is retried in a call of its own until its caller gives up. If the first write
was made, the retry fails its condition. So after a failed condition the caller must read the
document to see whose write it has.

Source: https://cloud.google.com/firestore/docs/reference/rpc/google.firestore.v1#batchwriterequest
"""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from google.api_core.exceptions import (
    Aborted,
    Cancelled,
    DeadlineExceeded,
    InternalServerError,
    ResourceExhausted,
    ServiceUnavailable,
    Unknown,
    from_grpc_error,
    from_grpc_status,
)
from google.api_core.gapic_v1 import routing_header
from google.cloud.firestore_v1.types import (
    BatchGetDocumentsRequest,
    BatchGetDocumentsResponse,
    BatchWriteRequest,
    BatchWriteResponse,
)
from grpc import StatusCode
from grpc.aio import AioRpcError

LARGEST_BATCH = 20
"""The maximum of documents in a batch, as in Google's bulk writers. Larger batches would save
little: in a batch of sixteen, a write already takes a ninth of a single write's processor time."""

FEW, MANY = 4, 16
"""The maximum of batches under way: usually `FEW`, and up to `MANY` while answers are slow or
batches are full. With four batches under way, on average one ends after each quarter of the time
that Firestore takes to answer, and the next can be sent. With more, batches would be smaller and
take more processor time. Sixteen batches and sixteen single documents, each for writes and for
reads, stay below HTTP/2's usual limit of a hundred calls per connection."""

SLOW_SECONDS = 0.1
"""A batch that takes longer than this no longer counts towards `FEW`, so that a hanging call does
not delay others. Firestore answers in 10 to 50 ms."""

CALL_SECONDS = 2.0
"""The timeout of one call. A ledger call may take 5 s, so after a lost answer there is time for two
retries."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5  # seconds between the retries of one document

# After these answers, a write may or may not have been made.
_UNANSWERED = (
    Aborted,
    Cancelled,
    DeadlineExceeded,
    InternalServerError,
    ResourceExhausted,
    ServiceUnavailable,
    Unknown,
)

_SERVICE = "/google.firestore.v1.Firestore/"
# The plain protobufs that the library's classes wrap.
_WriteRequest, _WriteResponse = BatchWriteRequest.pb(), BatchWriteResponse.pb()
_ReadRequest, _ReadResponse = BatchGetDocumentsRequest.pb(), BatchGetDocumentsResponse.pb()

_Req = TypeVar("_Req")
_Res = TypeVar("_Res")


class Closed(Exception):
    """The batches were closed before this write or read was answered."""


class Batches:
    """Writes and reads documents through a gRPC channel of Google's library.

    It uses the channel directly, because the library's client takes a fifth of a call's processor
    time. `database` is the full name of the database, `metadata` what the library sends with each
    call.

    `write` and `read` raise Google's exceptions, and `Closed`. They retry for ever if no answer
    comes, so the caller must set a timeout. If the caller is cancelled before its write is sent,
    the write is not sent.
    """

    def __init__(self, channel: Any, database: str, metadata: Sequence[tuple[str, str]]) -> None:
        self._database = database
        database_header = (("database", database),)
        route = routing_header.to_grpc_metadata(database_header)  # type: ignore[no-untyped-call] # untyped in the library
        self._options = {"metadata": (*metadata, route), "timeout": CALL_SECONDS}
        self._call_write = channel.unary_unary(
            f"{_SERVICE}BatchWrite", _WriteRequest.SerializeToString, _WriteResponse.FromString
        )
        self._call_read = channel.unary_stream(
            f"{_SERVICE}BatchGetDocuments", _ReadRequest.SerializeToString, _ReadResponse.FromString
        )
        self._writes = _Group[Any, Any](self._send_writes)
        self._reads = _Group[str, tuple[Any, Any]](self._send_reads)

    async def write(self, write: Any) -> Any:
        """Make one write (a protobuf `Write`). Returns the document's update time, a `Timestamp`.

        Raises the exceptions of a single commit: `AlreadyExists`, `FailedPrecondition`, ...
        """
        return await self._writes.send(write.update.name, write)

    async def read(self, document: str) -> tuple[Any, Any]:
        """The document of this full name, as a protobuf or None, and the `Timestamp` of the read.

        Reads do not wait for writes.
        """
        return await self._reads.send(document, document)

    @property
    def last_failure(self) -> Exception | None:
        """The failure of the latest call of writes, or else that of the latest call of reads."""
        failures = (self._writes.last_failure, self._reads.last_failure)
        return next(filter(None, failures), None)

    @property
    def sizes(self) -> dict[str, Counter[int]]:
        """The number of calls of each size, for `writes` and for `reads`."""
        return {"writes": self._writes.sizes, "reads": self._reads.sizes}

    async def close(self) -> None:
        """End all calls under way. Their callers get `Closed`."""
        await self._writes.close()
        await self._reads.close()

    async def _send_writes(self, writes: list[Any]) -> list[Any]:
        request = _WriteRequest(database=self._database, writes=writes)
        answer = await self._call_write(request, **self._options)
        return [
            # A status may quote what was written, so only its code is kept.
            _failure(status.code) if status.code else result.update_time
            for status, result in zip(answer.status, answer.write_results, strict=True)
        ]

    async def _send_reads(self, documents: list[str]) -> list[Any]:
        request = _ReadRequest(database=self._database, documents=documents)
        answers: dict[str, Any] = {}
        async for got in self._call_read(request, **self._options):
            found = got.found if got.HasField("found") else None
            answers[found.name if found else got.missing] = (found, got.read_time)
        return [answers.get(name, _failure(StatusCode.UNKNOWN.value[0])) for name in documents]


@dataclass(eq=False, slots=True)
class _Pending(Generic[_Req, _Res]):
    """One write or read. Its result is None if it must be sent again in a call of its own."""

    document: str
    request: _Req
    result: "asyncio.Future[_Res | Exception | None]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class _Group(Generic[_Req, _Res]):
    """Groups writes, or reads, into calls.

    `make_call` makes one call, and returns a value or an exception for each request.
    """

    def __init__(
        self, make_call: Callable[[list[_Req]], Awaitable[list[_Res | Exception]]]
    ) -> None:
        self._make_call = make_call
        self._waiting: dict[_Pending[_Req, _Res], None] = {}  # an ordered set
        self._dispatch_scheduled = False
        self._under_way: dict[asyncio.Task[None], list[_Pending[_Req, _Res]]] = {}
        self._batches = 0  # under way
        self._slow: set[asyncio.Task[None]] = set()
        self._alone = asyncio.Semaphore(MANY)
        self._closed = False
        self.last_failure: Exception | None = None
        self.sizes: Counter[int] = Counter()

    async def send(self, document: str, request: _Req) -> _Res:
        result = await self._submit(_Pending(document, request))
        pauses = _pauses()
        while result is None or isinstance(result, _UNANSWERED):
            await asyncio.sleep(next(pauses))
            result = await self._send_alone(_Pending(document, request))
        if isinstance(result, Exception):
            raise result
        return result

    async def _submit(self, pending: _Pending[_Req, _Res]) -> _Res | Exception | None:
        if self._closed:
            raise Closed
        self._waiting[pending] = None
        if not self._dispatch_scheduled:
            # In the event loop's next iteration, so that all requests of this one go together.
            self._dispatch_scheduled = True
            asyncio.get_running_loop().call_soon(self._dispatch)
        try:
            return await pending.result
        finally:
            self._waiting.pop(pending, None)

    async def _send_alone(self, pending: _Pending[_Req, _Res]) -> _Res | Exception | None:
        async with self._alone:
            if self._closed:
                raise Closed
            self._start([pending])
            return await pending.result

    def _dispatch(self) -> None:
        """Send as many batches as may be sent now."""
        self._dispatch_scheduled = False
        while self._waiting and self._batches < self._bound():
            batch: dict[str, _Pending[_Req, _Res]] = {}
            for pending in self._waiting:
                batch.setdefault(pending.document, pending)  # no document twice in one call
                if len(batch) == LARGEST_BATCH:
                    break
            for pending in batch.values():
                del self._waiting[pending]
            self._batches += 1
            task = self._start(list(batch.values()))
            slow = asyncio.get_running_loop().call_later(SLOW_SECONDS, self._becomes_slow, task)
            task.add_done_callback(partial(self._finished, slow=slow))

    def _bound(self) -> int:
        """The maximum of batches under way now."""
        if len(self._waiting) >= LARGEST_BATCH:
            return MANY
        return min(FEW + len(self._slow), MANY)

    def _becomes_slow(self, task: "asyncio.Task[None]") -> None:
        self._slow.add(task)
        self._dispatch()

    def _finished(self, task: "asyncio.Task[None]", *, slow: asyncio.TimerHandle) -> None:
        slow.cancel()
        self._slow.discard(task)
        self._batches -= 1
        self._dispatch()

    def _start(self, batch: list[_Pending[_Req, _Res]]) -> "asyncio.Task[None]":
        self.sizes[len(batch)] += 1
        task = asyncio.get_running_loop().create_task(self._call(batch))
        self._under_way[task] = batch
        task.add_done_callback(self._under_way.pop)
        return task

    async def _call(self, batch: list[_Pending[_Req, _Res]]) -> None:
        results: Sequence[_Res | Exception | None]
        try:
            results = await self._make_call([pending.request for pending in batch])
            self.last_failure = None
        except Exception as error:  # noqa: BLE001 - each caller must get it, whatever it is
            failure = _known(error)
            self.last_failure = failure
            # One document may have made the whole call fail, so each is retried alone.
            results = [failure] if len(batch) == 1 else [None] * len(batch)
        for pending, result in zip(batch, results, strict=True):
            if not pending.result.done():
                pending.result.set_result(result)

    async def close(self) -> None:
        self._closed = True
        under_way = dict(self._under_way)
        for pending in [*self._waiting, *itertools.chain.from_iterable(under_way.values())]:
            if not pending.result.done():
                pending.result.set_result(Closed())
        self._waiting.clear()
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


def _known(error: Exception) -> Exception:
    """Convert an exception of gRPC to Google's. Others are returned unchanged."""
    if not isinstance(error, AioRpcError):
        return error
    failure: Exception = from_grpc_error(error)  # type: ignore[no-untyped-call] # untyped in the library
    return failure


def _failure(code: int) -> Exception:
    failure: Exception = from_grpc_status(code, "")  # type: ignore[no-untyped-call] # untyped in the library
    return failure


def _pauses() -> Iterator[float]:
    """Seconds before each retry: random, so that writers do not collide, and doubled each time."""
    longest = _FIRST_PAUSE
    while True:
        yield random.uniform(longest / 2, longest)  # noqa: S311 - no secret
        longest = min(2 * longest, _LONGEST_PAUSE)
