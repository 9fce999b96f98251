"""Writes and reads of Firestore documents that are due at one moment travel in one call.

A call costs the processor several times what a document in it costs. This room knows documents,
not events: `Batches.write` and `Batches.read` look like calls of their own, and each has its own
condition, its own answer and its own failure. What is due leaves at once; what comes while
enough calls are under way forms the next batch. Nobody waits for a batch to fill.

A call is short and is not repeated by Google's library. A write that was aborted, or whose answer
was lost, goes again in a call of its own, until its caller gives up: it may have landed before, so
it can fail its own condition, and the caller must look whose write it is that stands there.

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
"""Documents; what Google's own bulk writers send. Larger ones save little more: in sixteens, a
write costs a twelfth of what it costs alone."""

FEW, MANY = 4, 16
"""Calls under way. With fewer than four, a write waits longer for an answer than it takes; with
more, batches are smaller than they need be. Sixteen is for answers that are slow, and for whole
batches that wait: a connection carries a hundred calls (HTTP/2's usual limit of streams), and calls
of single documents take as many again."""

SLOW_SECONDS = 0.1
"""A call that has been under way for so long is not one of the few any more: a call that hangs
must not hold up writes that have nothing to do with it. Firestore answers in 10 to 50 ms."""

CALL_SECONDS = 2.0
"""The longest one call may take. A ledger's caller waits 5 s: a lost answer leaves it time to ask
twice more."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5  # seconds between the tries of one document

# No answer to what was asked: it may have been done or not.
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
# The protobufs themselves, which the library's classes wrap.
_WriteRequest, _WriteResponse = BatchWriteRequest.pb(), BatchWriteResponse.pb()
_ReadRequest, _ReadResponse = BatchGetDocumentsRequest.pb(), BatchGetDocumentsResponse.pb()

_Q = TypeVar("_Q")
_A = TypeVar("_A")


class Closed(Exception):
    """The batches were closed before this write or read was answered."""


class Batches:
    """Writes and reads through one gRPC channel of Google's library.

    The channel itself: the client that is generated from Firestore's API, around it, takes a third
    of a call's processor time. `database` is its full name, `metadata` what the library sends with
    each call. Both methods raise Google's exceptions, and `Closed`; neither ends by itself while
    Firestore gives no answer: the caller sets the time. A cancelled caller takes back what has not
    left yet.
    """

    def __init__(self, channel: Any, database: str, metadata: Sequence[tuple[str, str]]) -> None:
        self._database = database
        database_header = (("database", database),)
        route = routing_header.to_grpc_metadata(database_header)  # type: ignore[no-untyped-call] # published so
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

        Raises what a commit of its own would: `AlreadyExists`, `FailedPrecondition`, ...
        """
        return await self._writes.ask(write.update.name, write)

    async def read(self, document: str) -> tuple[Any, Any]:
        """The document of this full name, a protobuf, or None; and when it was read, a `Timestamp`.

        Reads do not wait for writes.
        """
        return await self._reads.ask(document, document)

    @property
    def last_failure(self) -> Exception | None:
        """The latest call's failure; None when it was answered."""
        failures = (self._writes.last_failure, self._reads.last_failure)
        return next(filter(None, failures), None)

    @property
    def sizes(self) -> dict[str, Counter[int]]:
        """How many calls there were of each size, of `writes` and of `reads`."""
        return {"writes": self._writes.sizes, "reads": self._reads.sizes}

    async def close(self) -> None:
        """End what is under way; whoever waits for it is told that this is `Closed`."""
        await self._writes.close()
        await self._reads.close()

    async def _send_writes(self, writes: list[Any]) -> list[Any]:
        request = _WriteRequest(database=self._database, writes=writes)
        answer = await self._call_write(request, **self._options)
        return [
            # A status may quote what was written: only its code is kept.
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
class _Asked(Generic[_Q, _A]):
    """One question about one document, and its answer to come: None where it must go alone."""

    document: str
    question: _Q
    answer: "asyncio.Future[_A | Exception | None]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class _Group(Generic[_Q, _A]):
    """Questions of one kind; `send` answers several, each with a value or an exception."""

    def __init__(self, send: Callable[[list[_Q]], Awaitable[list[_A | Exception]]]) -> None:
        self._send = send
        self._waiting: dict[_Asked[_Q, _A], None] = {}  # an ordered set
        self._departing = False
        self._under_way: dict[asyncio.Task[None], list[_Asked[_Q, _A]]] = {}
        self._together = 0
        self._slow: set[asyncio.Task[None]] = set()
        self._alone = asyncio.Semaphore(MANY)
        self._closed = False
        self.last_failure: Exception | None = None
        self.sizes: Counter[int] = Counter()

    async def ask(self, document: str, question: _Q) -> _A:
        answer = await self._ask_together(_Asked(document, question))
        pauses = _pauses()
        while answer is None or isinstance(answer, _UNANSWERED):
            await asyncio.sleep(next(pauses))
            answer = await self._ask_alone(_Asked(document, question))
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _ask_together(self, asked: _Asked[_Q, _A]) -> _A | Exception | None:
        if self._closed:
            raise Closed
        self._waiting[asked] = None
        if not self._departing:
            # Not at once: whatever else becomes due in this round of the event loop comes along.
            self._departing = True
            asyncio.get_running_loop().call_soon(self._depart)
        try:
            return await asked.answer
        finally:
            self._waiting.pop(asked, None)

    async def _ask_alone(self, asked: _Asked[_Q, _A]) -> _A | Exception | None:
        async with self._alone:
            if self._closed:
                raise Closed
            self._start([asked])
            return await asked.answer

    def _depart(self) -> None:
        """Let leave what may leave now."""
        self._departing = False
        while self._waiting and self._together < self._bound():
            batch: dict[str, _Asked[_Q, _A]] = {}
            for asked in self._waiting:
                batch.setdefault(asked.document, asked)
                if len(batch) == LARGEST_BATCH:
                    break
            for asked in batch.values():
                del self._waiting[asked]
            self._together += 1
            task = self._start(list(batch.values()))
            slow = asyncio.get_running_loop().call_later(SLOW_SECONDS, self._becomes_slow, task)
            task.add_done_callback(partial(self._returns, slow=slow))

    def _bound(self) -> int:
        """How many batches may be under way by now."""
        if len(self._waiting) >= LARGEST_BATCH:
            return MANY
        return min(FEW + len(self._slow), MANY)

    def _becomes_slow(self, task: "asyncio.Task[None]") -> None:
        self._slow.add(task)
        self._depart()

    def _returns(self, task: "asyncio.Task[None]", *, slow: asyncio.TimerHandle) -> None:
        slow.cancel()
        self._slow.discard(task)
        self._together -= 1
        self._depart()

    def _start(self, batch: list[_Asked[_Q, _A]]) -> "asyncio.Task[None]":
        self.sizes[len(batch)] += 1
        task = asyncio.get_running_loop().create_task(self._travel(batch))
        self._under_way[task] = batch
        task.add_done_callback(self._under_way.pop)
        return task

    async def _travel(self, batch: list[_Asked[_Q, _A]]) -> None:
        answers: Sequence[_A | Exception | None]
        try:
            answers = await self._send([asked.question for asked in batch])
            self.last_failure = None
        except Exception as error:  # noqa: BLE001 - whatever it is, each caller must learn of it
            failure = _known(error)
            self.last_failure = failure
            # One may be what all were refused for: of several, each goes again alone.
            answers = [failure] if len(batch) == 1 else [None] * len(batch)
        for asked, answer in zip(batch, answers, strict=True):
            if not asked.answer.done():
                asked.answer.set_result(answer)

    async def close(self) -> None:
        self._closed = True
        under_way = dict(self._under_way)
        for asked in [*self._waiting, *itertools.chain.from_iterable(under_way.values())]:
            if not asked.answer.done():
                asked.answer.set_result(Closed())
        self._waiting.clear()
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


def _known(error: Exception) -> Exception:
    """One of Google's exceptions for one of gRPC's."""
    if not isinstance(error, AioRpcError):
        return error
    failure: Exception = from_grpc_error(error)  # type: ignore[no-untyped-call] # published so
    return failure


def _failure(code: int) -> Exception:
    failure: Exception = from_grpc_status(code, "")  # type: ignore[no-untyped-call] # published so
    return failure


def _pauses() -> Iterator[float]:
    """Seconds before each new try, doubled each time; spread, so that contenders part."""
    longest = _FIRST_PAUSE
    while True:
        yield random.uniform(longest / 2, longest)  # noqa: S311 - no secret
        longest = min(2 * longest, _LONGEST_PAUSE)
