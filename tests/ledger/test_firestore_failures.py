"""Firestore down, hanging, refusing, or answering a write that landed as if it had not."""

import asyncio
import contextlib
import signal
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import grpc
import pytest
from google.api_core.exceptions import Aborted
from google.cloud.firestore import AsyncClient
from google.cloud.firestore_v1.services.firestore import FirestoreAsyncClient

from local import emulators
from local.processes import free_port
from relay.ledger import (
    DeadLetter,
    Duplicate,
    Ledger,
    LedgerUnavailable,
    key_of,
)
from relay.ledger.firestore import FirestoreLedger
from tests.ledger.events import claimed, event
from tests.wire import serving

T = TypeVar("T")
Call = Callable[[], Awaitable[Any]]

HOUR = timedelta(hours=1)
RECORD = "events/" + key_of("acme", "evt_1")
LETTER = DeadLetter(data=b"{", reason="malformed", detail="no JSON")

CUT_SHORT = ("relay.ledger.firestore.LEDGER_TIMEOUT", timedelta(seconds=0.5))
"""The ledger's time limit: what is shown is that there is one, not how long it is."""

NEVER = 60.0
"""Seconds after which a call that should have given up is said to hang."""


@pytest.fixture
async def connect(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[[str], Ledger]]:
    """Opens ledgers on the Firestore at an address, under one project of this test's own."""
    project = f"test-{uuid.uuid4().hex[:12]}"
    opened = []

    def connect_to(address: str) -> Ledger:
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", address)
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", project)
        opened.append(FirestoreLedger.connect(project, "(default)", HOUR))
        return opened[-1]

    yield connect_to
    for ledger in opened:
        await ledger.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """See `CUT_SHORT`."""
    monkeypatch.setattr(*CUT_SHORT)


async def _hang(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    while await reader.read(65536):
        pass


@pytest.mark.usefixtures("impatient")
async def test_a_server_that_never_answers_is_given_up(connect: Callable[[str], Ledger]) -> None:
    """It accepts connections and says nothing: the request must not hang with it."""
    async with serving(_hang) as url:
        ledger = connect(url.removeprefix("http://"))
        with pytest.raises(LedgerUnavailable, match="did not answer within"):
            await asyncio.wait_for(ledger.claim(event()), NEVER)


@pytest.mark.usefixtures("impatient")
async def test_a_closed_port_is_given_up(connect: Callable[[str], Ledger]) -> None:
    """The client library would go on trying for a minute."""
    ledger = connect(f"127.0.0.1:{free_port()}")
    with pytest.raises(LedgerUnavailable):
        await asyncio.wait_for(ledger.claim(event()), NEVER)


async def test_a_cancellation_passes_through(connect: Callable[[str], Ledger]) -> None:
    """A shutdown is not a failing ledger."""
    asked = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await _hang(reader, writer)

    async with serving(hang) as url:
        claim = asyncio.ensure_future(connect(url.removeprefix("http://")).claim(event()))
        await asyncio.wait_for(asked.wait(), NEVER)
        claim.cancel()
        with pytest.raises(asyncio.CancelledError):
            await claim


@pytest.mark.usefixtures("firestore_emulator")
async def test_a_suspended_firestore_is_given_up_and_no_harm_is_done(
    connect: Callable[[str], Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What timed out may have landed; asked again, it succeeds either way."""
    with emulators.firestore_emulator() as (address, server):
        ledger = connect(address)
        delivered = await claimed(ledger, event("evt_delivered"))
        released = await claimed(ledger, event("evt_released"))
        settling: list[Call] = [
            lambda: ledger.complete(delivered, "msg_1"),
            lambda: ledger.release(released),
            lambda: ledger.park(LETTER),
        ]
        calls: list[Call] = [*settling, lambda: ledger.claim(event("evt_new"))]
        server.send_signal(signal.SIGSTOP)
        with monkeypatch.context() as impatient:
            impatient.setattr(*CUT_SHORT)
            for call in calls:
                with pytest.raises(LedgerUnavailable):
                    await asyncio.wait_for(call(), NEVER)
        server.send_signal(signal.SIGCONT)
        for call in settling:
            await call()
        assert isinstance(await ledger.claim(event("evt_delivered")), Duplicate)
        assert (await claimed(ledger, event("evt_released"))).attempts == 2


async def test_a_letter_too_large_to_be_stored_is_refused(
    connect: Callable[[str], Ledger], firestore_emulator: str
) -> None:
    """It is nacked then, rather than lost."""
    letter = DeadLetter(data=b"x" * 2 * 1024 * 1024, reason="rejected", detail="too large")
    with pytest.raises(LedgerUnavailable, match="larger than a document"):
        await connect(firestore_emulator).park(letter)


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, "roles/datastore.user"),
        (grpc.StatusCode.UNAUTHENTICATED, "credentials"),
        (grpc.StatusCode.NOT_FOUND, "FIRESTORE_DATABASE"),
        (grpc.StatusCode.INVALID_ARGUMENT, "larger"),
        (grpc.StatusCode.INTERNAL, "again"),
    ],
)
async def test_a_refusal_says_what_to_check(
    connect: Callable[[str], Ledger], code: grpc.StatusCode, advice: str
) -> None:
    """In words of our own: Firestore's may quote what was written."""
    async with _refusing(code, "payload hunter2") as address:
        ledger = connect(address)
        for call in (ledger.claim(event()), ledger.park(LETTER)):
            with pytest.raises(LedgerUnavailable, match=advice) as failure:
                await asyncio.wait_for(call, NEVER)
            assert code.name in str(failure.value)
            assert "hunter2" not in str(failure.value)
            assert failure.value.__suppress_context__


@contextlib.asynccontextmanager
async def _refusing(code: grpc.StatusCode, details: str) -> AsyncIterator[str]:
    """The address of a gRPC server that answers every call with this status."""

    async def refuse(_: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        await context.abort(code, details)

    class Refuse(grpc.GenericRpcHandler):  # type: ignore[misc]  # no types
        def service(self, _: grpc.HandlerCallDetails) -> Any:
            return grpc.unary_unary_rpc_method_handler(refuse)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers([Refuse()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


class Link:
    """A connection to the emulator that can lose answers: they are withheld, then it breaks."""

    def __init__(self, address: str) -> None:
        self._host, _, self._port = address.partition(":")
        self._withholding = False
        self._connections: set[asyncio.StreamWriter] = set()

    def withhold(self) -> None:
        """From here on no answer comes through."""
        self._withholding = True

    def break_off(self) -> None:
        """The client sees its connection end, and may connect anew."""
        self._withholding = False
        for connection in self._connections:
            connection.transport.abort()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one client's connection."""
        answers, questions = await asyncio.open_connection(self._host, int(self._port))
        self._connections.add(writer)

        async def forward() -> None:
            while data := await reader.read(65536):
                questions.write(data)
            questions.close()

        async def back() -> None:
            while data := await answers.read(65536):
                if not self._withholding:
                    writer.write(data)

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(forward())
                group.create_task(back())
        except* ConnectionError:
            pass
        finally:
            self._connections.discard(writer)
            questions.transport.abort()


def kind(commit: Any) -> str:
    """Whether a commit is to create a document or to update one."""
    (write,) = commit["writes"] if isinstance(commit, dict) else commit.writes
    return "update" if "update_time" in write.current_document else "create"


@dataclass
class Unanswered:
    """A ledger, and a way to make a call to it whose write lands and is never answered."""

    ledger: Ledger
    link: Link
    records: AsyncClient
    monkeypatch: pytest.MonkeyPatch

    async def make(self, call: Awaitable[T], write: str, path: str) -> T:
        """Withhold answers from this write on; break off when the document has changed."""
        commit = FirestoreAsyncClient.commit
        document = self.records.document(path)
        before = (await document.get()).update_time

        async def unheard(client: FirestoreAsyncClient, request: Any, **kwargs: Any) -> Any:
            if kind(request) == write:
                self.monkeypatch.setattr(FirestoreAsyncClient, "commit", commit)
                self.link.withhold()
            return await commit(client, request, **kwargs)

        self.monkeypatch.setattr(FirestoreAsyncClient, "commit", unheard)
        answer = asyncio.ensure_future(call)
        async with asyncio.timeout(NEVER):
            while (await document.get()).update_time == before:
                assert not answer.done()
        assert not answer.done()
        self.link.break_off()
        return await answer


@pytest.fixture
async def unanswered(
    connect: Callable[[str], Ledger], firestore_emulator: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Unanswered]:
    """See `Unanswered`; its connection is open already."""
    link = Link(firestore_emulator)
    connect(firestore_emulator)
    records = AsyncClient()
    async with serving(link.carry) as url:
        ledger = connect(url.removeprefix("http://"))
        await claimed(ledger, event("evt_to_connect"))
        yield Unanswered(ledger, link, records, monkeypatch)


async def test_a_first_claim_that_landed_unanswered_is_ours(unanswered: Unanswered) -> None:
    """The library creates it again and is told that it is there."""
    ledger = unanswered.ledger
    claim = await unanswered.make(claimed(ledger, event()), "create", RECORD)
    assert claim.attempts == 1
    await ledger.complete(claim, "msg_1")
    assert await ledger.claim(event()) == Duplicate("msg_1", payload_changed=False, attempts=1)


async def test_a_takeover_that_landed_unanswered_is_ours(unanswered: Unanswered) -> None:
    """The library writes it again and is told that the record has changed."""
    ledger = unanswered.ledger
    await ledger.release(await claimed(ledger, event()))
    claim = await unanswered.make(claimed(ledger, event()), "update", RECORD)
    assert claim.attempts == 2
    await ledger.complete(claim, "msg_1")
    assert await ledger.claim(event()) == Duplicate("msg_1", payload_changed=False, attempts=2)


async def test_a_completion_that_landed_unanswered_is_ours(unanswered: Unanswered) -> None:
    """The event is delivered, not lost to another."""
    ledger = unanswered.ledger
    claim = await claimed(ledger, event())
    await unanswered.make(ledger.complete(claim, "msg_1"), "update", RECORD)
    assert await ledger.claim(event()) == Duplicate("msg_1", payload_changed=False, attempts=1)


async def test_a_release_that_landed_unanswered_is_ours(unanswered: Unanswered) -> None:
    """And the next claim succeeds at once."""
    ledger = unanswered.ledger
    claim = await claimed(ledger, event())
    await unanswered.make(ledger.release(claim), "update", RECORD)
    assert (await claimed(ledger, event())).attempts == 2


async def test_a_letter_that_landed_unanswered_is_parked(unanswered: Unanswered) -> None:
    """As if it had been parked before."""
    parking = unanswered.ledger.park(LETTER)
    await unanswered.make(parking, "create", f"dead_letters/{LETTER.id}")


@pytest.mark.parametrize("method", ["create", "update"])
async def test_a_write_that_was_crowded_out_is_repeated(
    connect: Callable[[str], Ledger],
    firestore_emulator: str,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    """Firestore aborts what meets another writer: nothing was written, and nobody has the claim."""
    commit = FirestoreAsyncClient.commit
    failures: list[Exception] = [
        Aborted("contention")  # type: ignore[no-untyped-call]  # as published
    ]

    async def crowded_out(self: FirestoreAsyncClient, request: Any, **kwargs: Any) -> Any:
        if failures and kind(request) == method:
            raise failures.pop()
        return await commit(self, request, **kwargs)

    monkeypatch.setattr(FirestoreAsyncClient, "commit", crowded_out)
    ledger = connect(firestore_emulator)
    await ledger.complete(await claimed(ledger, event()), "msg_1")
    assert not failures
    assert await ledger.claim(event()) == Duplicate("msg_1", payload_changed=False, attempts=1)
