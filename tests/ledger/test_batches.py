"""How writes and reads are batched, and what each caller gets, on a stand-in for Firestore.

The test decides the stand-in's answers. The contract suite and the failure suite show that
Firestore itself takes these batches.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field
from typing import Any

import pytest
from google.api_core.exceptions import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    ServiceUnavailable,
)
from google.cloud.firestore_v1.types import BatchGetDocumentsResponse, BatchWriteResponse
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata

from relay.ledger import batches
from relay.ledger.batches import Batches, Closed
from relay.ledger.documents import creation

OK, ABORTED, ALREADY_EXISTS, FAILED_PRECONDITION = (
    code.value[0]
    for code in (
        StatusCode.OK,
        StatusCode.ABORTED,
        StatusCode.ALREADY_EXISTS,
        StatusCode.FAILED_PRECONDITION,
    )
)

DATABASE = "projects/p/databases/d"
OPTIONS = {
    "metadata": (("x-goog-request-params", "database=projects/p/databases/d"),),
    "timeout": batches.CALL_SECONDS,
}
"""The options of each call: a short time limit, and the header that routes it to its database."""


@dataclass(eq=False)
class Call:
    """One call, and its documents. It waits until the test answers it."""

    documents: list[str]
    reply: "asyncio.Future[dict[str, int]]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def answer(self, **codes: int) -> None:
        """Answer each document with success, or with the code given for it."""
        self.reply.set_result(codes)

    def fail(self, code: StatusCode) -> None:
        """Fail the whole call."""
        self.reply.set_exception(AioRpcError(code, Metadata(), Metadata()))


class Firestore:
    """Stands in for the gRPC channel to Firestore."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.most_under_way = 0
        self.answers_itself = False
        self._more = asyncio.Condition()

    def unary_unary(self, method: str, *_: Any) -> Any:
        """The calls of a method with one answer: BatchWrite."""
        assert method == "/google.firestore.v1.Firestore/BatchWrite"

        async def batch_write(request: Any, **options: Any) -> Any:
            assert options == OPTIONS
            codes = await self._called([write.update.name for write in request.writes])
            answer = BatchWriteResponse.pb()()
            for write in request.writes:
                answer.status.add(code=codes.get(write.update.name, OK))
                answer.write_results.add().update_time.seconds = len(write.update.name)
            return answer

        return batch_write

    def unary_stream(self, method: str, *_: Any) -> Any:
        """The calls of a method with several answers: BatchGetDocuments."""
        assert method == "/google.firestore.v1.Firestore/BatchGetDocuments"

        async def batch_get_documents(request: Any, **options: Any) -> AsyncIterator[Any]:
            assert options == OPTIONS
            await self._called(list(request.documents))
            # Firestore answers in any order.
            for name in reversed(request.documents):
                answer = BatchGetDocumentsResponse.pb()(missing=name)
                answer.read_time.seconds = 7
                yield answer

        return batch_get_documents

    async def _called(self, documents: list[str]) -> dict[str, int]:
        call = Call(documents)
        async with self._more:
            self.calls.append(call)
            self._more.notify_all()
        under_way = sum(not call.reply.done() for call in self.calls)
        self.most_under_way = max(self.most_under_way, under_way)
        if self.answers_itself:
            await asyncio.sleep(0)
            call.answer()
        return await call.reply

    async def called(self, count: int) -> None:
        """Wait until this many calls were made."""
        async with asyncio.timeout(20), self._more:
            await self._more.wait_for(lambda: len(self.calls) >= count)

    @property
    def sizes(self) -> list[int]:
        """The number of documents of each call."""
        return [len(call.documents) for call in self.calls]


@pytest.fixture
def firestore() -> Firestore:
    """The stand-in for Firestore."""
    return Firestore()


@pytest.fixture
def made(firestore: Firestore, monkeypatch: pytest.MonkeyPatch) -> Batches:
    """Batches in which no call counts as slow, and retries follow at once."""
    monkeypatch.setattr(batches, "SLOW_SECONDS", 60.0)
    monkeypatch.setattr(batches, "_FIRST_PAUSE", 0.0)
    return Batches(firestore, DATABASE, ())


def write(made: Batches, *documents: str) -> list["asyncio.Task[Any]"]:
    """Write these documents at the same moment."""
    return [
        asyncio.ensure_future(made.write(creation(name, {"value": name}))) for name in documents
    ]


def names(count: int) -> list[str]:
    """Different names of documents."""
    return [f"d{number}" for number in range(count)]


async def settled() -> None:
    """Let every task run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def until(condition: Awaitable[Any]) -> Any:
    """Wait for up to 20 s."""
    return await asyncio.wait_for(condition, 20)


async def test_a_single_write_is_sent_at_once(made: Batches, firestore: Firestore) -> None:
    """It does not wait for a batch to fill."""
    (alone,) = write(made, "d")
    await settled()
    assert firestore.sizes == [1]
    firestore.calls[0].answer()
    assert (await alone).seconds == 1


async def test_writes_at_the_same_moment_are_one_batch(made: Batches, firestore: Firestore) -> None:
    """Each caller gets the result of its own write. The sizes of the batches are counted."""
    written = write(made, "d", "dd", "ddd")
    await settled()
    assert firestore.sizes == [3]
    firestore.calls[0].answer()
    assert [answer.seconds for answer in await asyncio.gather(*written)] == [1, 2, 3]
    assert made.sizes["writes"] == {3: 1}


async def test_writes_that_come_while_enough_calls_are_under_way_form_the_next_batch(
    made: Batches, firestore: Firestore
) -> None:
    """The batch is sent after the first answer. Its writes are in the order in which they came."""
    for name in names(batches.FEW):
        write(made, name)
        await settled()
    late = write(made, "late_1", "late_2")
    await settled()
    later = write(made, "later")
    await settled()
    assert firestore.sizes == [1] * batches.FEW
    firestore.calls[2].answer()
    await settled()
    assert firestore.calls[-1].documents == ["late_1", "late_2", "later"]
    firestore.calls[-1].answer()
    await until(asyncio.gather(*late, *later))
    for call in firestore.calls:
        if not call.reply.done():
            call.answer()
    await settled()


async def test_a_full_batch_does_not_wait_for_answers(made: Batches, firestore: Firestore) -> None:
    """The low limit of calls is only for small batches. A full batch is sent at once."""
    at_most = batches.MANY * batches.LARGEST_BATCH
    written = write(made, *names(at_most + 1))
    await settled()
    assert firestore.sizes == [batches.LARGEST_BATCH] * batches.MANY
    firestore.calls[0].answer()
    await settled()
    # Less than a full batch is left, and more than `FEW` calls are under way.
    assert len(firestore.calls) == batches.MANY
    for call in firestore.calls[1 : -batches.FEW + 1]:
        call.answer()
    await settled()
    assert firestore.sizes[-1] == 1
    for call in firestore.calls[-batches.FEW :]:
        call.answer()
    await until(asyncio.gather(*written))


async def test_a_thousand_at_once_are_bounded(made: Batches, firestore: Firestore) -> None:
    """The size and the number of the calls are bounded, and each write is answered."""
    firestore.answers_itself = True
    await until(asyncio.gather(*write(made, *names(1000))))
    assert max(firestore.sizes) == batches.LARGEST_BATCH
    assert firestore.most_under_way <= batches.MANY
    assert sum(firestore.sizes) == 1000
    assert len(firestore.sizes) == 1000 / batches.LARGEST_BATCH


async def test_calls_that_hang_do_not_hold_up_others(
    made: Batches, firestore: Firestore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow calls do not count towards the calls for which a write waits."""
    monkeypatch.setattr(batches, "SLOW_SECONDS", 0.05)
    hanging = []
    for name in names(batches.FEW):
        hanging += write(made, name)
        await settled()
    (prompt,) = write(made, "prompt")
    await settled()
    assert len(firestore.calls) == batches.FEW
    await firestore.called(batches.FEW + 1)
    firestore.calls[-1].answer()
    await until(prompt)
    for call in firestore.calls[:-1]:
        call.answer()
    await until(asyncio.gather(*hanging))


async def test_a_document_is_never_twice_in_one_batch(made: Batches, firestore: Firestore) -> None:
    """Firestore would refuse the whole batch."""
    written = write(made, "a", "b", "a", "a", "c")
    await settled()
    assert [call.documents for call in firestore.calls] == [["a", "b", "c"], ["a"], ["a"]]
    for call in firestore.calls:
        call.answer()
    await until(asyncio.gather(*written))


async def test_a_contested_write_fails_alone(made: Batches, firestore: Firestore) -> None:
    """The other writes of the batch succeed. The caller gets the reason of the failure."""
    documents = names(20)
    written = write(made, *documents)
    await settled()
    firestore.calls[0].answer(d3=ALREADY_EXISTS, d7=FAILED_PRECONDITION)
    answers = await asyncio.gather(*written, return_exceptions=True)
    failed = {
        name: type(a)
        for name, a in zip(documents, answers, strict=True)
        if isinstance(a, Exception)
    }
    assert failed == {"d3": AlreadyExists, "d7": FailedPrecondition}
    assert firestore.sizes == [20]


async def test_an_aborted_write_is_sent_again_alone(made: Batches, firestore: Firestore) -> None:
    """It was aborted because of another writer, and nothing was written."""
    written = write(made, "a", "b", "c")
    await settled()
    firestore.calls[0].answer(b=ABORTED)
    await until(written[0])
    await firestore.called(2)
    assert firestore.calls[1].documents == ["b"]
    firestore.calls[1].answer(b=ABORTED)
    await firestore.called(3)
    firestore.calls[2].answer()
    await until(asyncio.gather(*written))


async def test_after_a_batch_whose_answer_was_lost_its_writes_are_sent_one_by_one(
    made: Batches, firestore: Firestore
) -> None:
    """The batch had been written, so each write now fails its condition.

    Each caller must read its document to see whether its own write is in it.
    """
    documents = names(20)
    written = write(made, *documents)
    await settled()
    firestore.calls[0].fail(StatusCode.UNAVAILABLE)
    await firestore.called(1 + batches.MANY)
    await settled()
    # They are sent one by one, but not all at once.
    assert firestore.sizes == [20] + [1] * batches.MANY
    assert isinstance(made.last_failure, ServiceUnavailable)
    answered = 1
    async with asyncio.timeout(20):
        while answered < 21:
            for call in firestore.calls[answered:]:
                call.answer(**dict.fromkeys(call.documents, ALREADY_EXISTS))
                answered += 1
            await asyncio.sleep(0)
    answers = await until(asyncio.gather(*written, return_exceptions=True))
    assert {type(answer) for answer in answers} == {AlreadyExists}
    assert made.last_failure is None


async def test_a_write_that_firestore_refuses_does_not_fail_the_others(
    made: Batches, firestore: Firestore
) -> None:
    """A document that is too large fails the whole call, and the error does not say which."""
    written = write(made, "a", "large")
    await settled()
    firestore.calls[0].fail(StatusCode.INVALID_ARGUMENT)
    await firestore.called(3)
    for call in firestore.calls[1:]:
        if call.documents == ["large"]:
            call.fail(StatusCode.INVALID_ARGUMENT)
        else:
            call.answer()
    await until(written[0])
    with pytest.raises(InvalidArgument):
        await until(written[1])


async def test_the_unsent_write_of_a_cancelled_caller_is_removed(
    made: Batches, firestore: Firestore
) -> None:
    """The rest of the batch is sent without it."""
    for name in names(batches.FEW):
        write(made, name)
        await settled()
    gives_up, stays = write(made, "gives_up", "stays")
    await settled()
    gives_up.cancel()
    await settled()
    for call in firestore.calls:
        call.answer()
    await settled()
    assert firestore.calls[-1].documents == ["stays"]
    firestore.calls[-1].answer()
    await until(stays)
    assert gives_up.cancelled()


async def test_a_caller_cancelled_after_its_write_was_sent_only_loses_the_answer(
    made: Batches, firestore: Firestore
) -> None:
    """The other callers of the batch get their answers."""
    gives_up, stays = write(made, "gives_up", "stays")
    await settled()
    gives_up.cancel()
    await settled()
    assert firestore.calls[0].documents == ["gives_up", "stays"]
    firestore.calls[0].answer()
    await until(stays)
    assert gives_up.cancelled()


async def test_a_caller_that_gives_up_ends_its_retries(made: Batches, firestore: Firestore) -> None:
    """Nothing is written for a caller that has left."""
    (gives_up,) = write(made, "d")
    await settled()
    firestore.calls[0].fail(StatusCode.UNAVAILABLE)
    await firestore.called(2)
    gives_up.cancel()
    await settled()
    firestore.calls[1].fail(StatusCode.UNAVAILABLE)
    await settled()
    assert len(firestore.calls) == 2


async def test_closing_ends_all_calls_and_all_waiting_writes(
    made: Batches, firestore: Firestore
) -> None:
    """Each caller gets an error, and none hangs."""
    under_way = write(made, *names(batches.FEW))
    await settled()
    for name in ("x1", "x2", "x3"):
        under_way += write(made, name)
        await settled()
    waiting = write(made, "waiting")
    reading = asyncio.ensure_future(made.read("r"))
    await settled()
    assert len(firestore.calls) == batches.FEW + 1
    await made.close()
    ended = await until(asyncio.gather(*under_way, *waiting, reading, return_exceptions=True))
    assert {type(failure) for failure in ended} == {Closed}
    with pytest.raises(Closed):
        await made.read("r")


async def test_reads_are_batched_and_do_not_wait_for_writes(
    made: Batches, firestore: Firestore
) -> None:
    """A read must be quick even while writes are slow."""
    writing = [task for name in names(batches.FEW) for task in write(made, name)]
    await settled()
    reading = [asyncio.ensure_future(made.read(name)) for name in ("r1", "r2")]
    await settled()
    assert firestore.calls[-1].documents == ["r1", "r2"]
    firestore.calls[-1].answer()
    answers = await until(asyncio.gather(*reading))
    assert [(document, at.seconds) for document, at in answers] == [(None, 7), (None, 7)]
    for call in firestore.calls[:-1]:
        call.answer()
    await until(asyncio.gather(*writing))
