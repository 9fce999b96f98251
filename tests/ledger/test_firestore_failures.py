"""Firestore is down, hangs or refuses: no call may hang, and each error says what to check."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.cloud.firestore_v1.types import WriteResult

from local.processes import Server, free_port
from relay.ledger import (
    Claim,
    Duplicate,
    Ledger,
    LedgerMisconfigured,
    LedgerUnavailable,
)
from relay.ledger.firestore import FirestoreLedger
from tests.harness.processes import await_stop
from tests.ledger.events import claimed, event, letter
from tests.ledger.ledgers import KEY
from tests.wire import serving

Call = Callable[[], Awaitable[Any]]
Connect = Callable[[str], FirestoreLedger]

LETTER = letter()

CUT_SHORT = ("relay.ledger.firestore_calls.LEDGER_CALL_SECONDS", 0.5)
"""A shorter time limit of the ledger. The tests show that there is one, not how long it is."""

NEVER = 60.0
"""Seconds after which a call counts as hanging."""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the ledger's time limit."""
    monkeypatch.setattr(*CUT_SHORT)


async def _hang(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    while await reader.read(65536):
        pass


@pytest.mark.usefixtures("impatient")
async def test_a_server_that_never_answers_is_given_up(connect: Connect) -> None:
    """It accepts connections and never answers. The request must not hang as well."""
    async with serving(_hang) as url:
        ledger = connect(url.removeprefix("http://"))
        with pytest.raises(LedgerUnavailable, match="did not answer within"):
            await asyncio.wait_for(ledger.claim(event()), NEVER)


@pytest.mark.usefixtures("impatient")
async def test_a_closed_port_is_given_up(connect: Connect) -> None:
    """The client library alone would retry for a minute."""
    ledger = connect(f"127.0.0.1:{free_port()}")
    with pytest.raises(LedgerUnavailable):
        await asyncio.wait_for(ledger.claim(event()), NEVER)


async def test_a_cancellation_passes_through(connect: Connect) -> None:
    """A shutdown must not look like a failure of the ledger."""
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


async def test_a_suspended_firestore_is_given_up_and_no_harm_is_done(
    connect: Connect,
    own_firestore_emulator: tuple[str, Server],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A write that timed out may have landed. When it is repeated, it succeeds in both cases."""
    address, server = own_firestore_emulator
    ledger = connect(address)
    await _warm(ledger)
    to_complete = await claimed(ledger, event("evt_delivered"))
    to_release = await claimed(ledger, event("evt_released"))
    settling: list[Call] = [
        lambda: ledger.complete(to_complete, "msg_1", fanout_confirmed=True),
        lambda: ledger.release(to_release),
        lambda: ledger.park(LETTER),
    ]
    calls: list[Call] = [*settling, lambda: ledger.claim(event("evt_new"))]
    server.send_signal(signal.SIGSTOP)
    await_stop(server.pid)
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


@pytest.mark.parametrize(
    ("code", "says", "advice"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, "payload hunter2", "roles/datastore.user"),
        (grpc.StatusCode.UNAUTHENTICATED, "payload hunter2", "credentials"),
        (grpc.StatusCode.NOT_FOUND, "payload hunter2", "FIRESTORE_DATABASE"),
        (grpc.StatusCode.FAILED_PRECONDITION, "payload hunter2", "native mode"),
        # gRPC's own error if Google's credentials get no token.
        (
            grpc.StatusCode.UNAVAILABLE,
            "Getting metadata from plugin failed: hunter2",
            "credentials",
        ),
        (grpc.StatusCode.INVALID_ARGUMENT, "payload hunter2", None),
        (grpc.StatusCode.INTERNAL, "payload hunter2", None),
    ],
)
@pytest.mark.usefixtures("impatient")
async def test_a_refusal_says_what_to_check(
    connect: Connect, code: grpc.StatusCode, says: str, advice: str | None
) -> None:
    """The message is our own, because Firestore's may quote the payload."""
    async with _refusing(code, says) as address:
        ledger = connect(address)
        claim = Claim(KEY, "token", WriteResult.pb()().update_time, 1, 0.0)
        calls: list[Awaitable[Any]] = [
            ledger.claim(event()),
            ledger.claim(event(), previous=claim),
            ledger.record(KEY),
            ledger.release(claim),
            ledger.complete(claim, "msg_1", fanout_confirmed=True),
        ]
        for call in calls:
            with pytest.raises(LedgerUnavailable) as failure:
                await asyncio.wait_for(call, NEVER)
            assert code.name in str(failure.value)
            assert "hunter2" not in str(failure.value)
            assert failure.value.__suppress_context__
            # Only a fault without advice may pass by itself.
            assert isinstance(failure.value, LedgerMisconfigured) is (advice is not None)
            assert (advice or "Firestore") in str(failure.value)


async def test_a_letter_that_is_refused_says_what_to_check(connect: Connect) -> None:
    """A page of records that an operator's command reads says the same.

    It must not be retried for two minutes.
    """
    async with _refusing(grpc.StatusCode.PERMISSION_DENIED, "payload hunter2") as address:
        ledger = connect(address)
        for call in (
            ledger.park(LETTER),
            ledger.dead_letter(LETTER.id),
            anext(ledger.undelivered()),
        ):
            with pytest.raises(LedgerMisconfigured, match=r"roles/datastore\.user"):
                await asyncio.wait_for(call, NEVER)


@pytest.mark.parametrize("fault", ["missing", "no file", "not JSON"])
async def test_missing_credentials_are_reported_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str
) -> None:
    """The sentence comes at once, without a traceback."""
    for name in ("FIRESTORE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS", "APPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # Google's library asks no metadata server
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    if fault != "missing":
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    if fault == "not JSON":
        (tmp_path / "key.json").write_text("{")
    with pytest.raises(LedgerMisconfigured, match="credentials are missing or can't be read"):
        FirestoreLedger.connect("p", "(default)")


async def test_a_missing_project_is_reported_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The credentials are present, but neither they nor a setting names the project."""
    for name in ("FIRESTORE_EMULATOR_HOST", "GOOGLE_CLOUD_PROJECT", "GCLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))  # so that gcloud is not asked for its project
    key = tmp_path / "key.json"
    key.write_text(
        '{"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "t"}'
    )
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
    with pytest.raises(LedgerMisconfigured, match="GOOGLE_CLOUD_PROJECT"):
        FirestoreLedger.connect(None, "(default)")


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


async def test_closing_ends_a_call_under_way(connect: Connect) -> None:
    """The call fails with the ledger's error, which the protocol handles, and is not cancelled."""
    asked = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await _hang(reader, writer)

    async with serving(hang) as url:
        ledger = connect(url.removeprefix("http://"))
        calls = [asyncio.ensure_future(ledger.claim(event(f"evt_{n}"))) for n in range(3)]
        looking = asyncio.ensure_future(ledger.record(KEY))
        await asyncio.wait_for(asked.wait(), NEVER)
        await ledger.close()
        ended = await asyncio.gather(*calls, looking, return_exceptions=True)
        assert [str(failure) for failure in ended] == ["the ledger was closed"] * 4
        assert {type(failure) for failure in ended} == {LedgerUnavailable}


async def _warm(ledger: Ledger) -> None:
    """Wait until an emulator that has just started answers in time."""
    async with asyncio.timeout(NEVER):
        while True:
            with contextlib.suppress(LedgerUnavailable):
                await ledger.claim(event("evt_to_warm_up"))
                return
