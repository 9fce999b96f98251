"""A worker in this process, on SQLite and the simulator: the answers of README's table."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from local.behaviour import Fault
from local.simulator import Simulator
from relay import intake
from relay import worker as worker_module
from relay.config import ATTEMPT_SECONDS, Settings
from relay.envelope import Names
from relay.ledger import Archive, LedgerMisconfigured
from relay.ledger.sqlite import SqliteLedger
from relay.outcome import Remark, Result
from relay.worker import Worker
from tests import function
from tests.function import JSON
from tests.in_process import handle, running_worker

TOKEN = "testsk_worker"
BUDGET = ATTEMPT_SECONDS + 1
HOLDERS = 4  # this many bodies are read at once, and leave no room for another one


@pytest.fixture
async def svix() -> AsyncIterator[Simulator]:
    async with Simulator(token=TOKEN) as simulator:
        yield simulator


@pytest.fixture
async def relay(svix: Simulator, tmp_path: Path) -> AsyncIterator[Worker]:
    ledger = SqliteLedger(tmp_path / "ledger.db", create=True)
    async with running_worker(settings(svix), lambda: ledger) as started:
        yield started


def settings(svix: Simulator) -> Settings:
    """The settings, with the shortest budget that leaves a moment to wait."""
    return Settings(svix_token=TOKEN, svix_server_url=svix.url, request_budget=BUDGET)


def event(event_id: str, **more: Any) -> bytes:
    """An event's body."""
    return json.dumps(function.event(event_id, **more)).encode()


def push(body: bytes, message_id: str = "77") -> bytes:
    """A wrapped push of a body."""
    return function.wrapped(body, message_id)


def attempting(relay: Worker) -> bool:
    """Whether an attempt is under way."""
    return relay._delivery is not None and bool(relay._delivery.attempting)


def answer(result: Result) -> tuple[int, str]:
    """The status and the outcome of a result."""
    return result.status, result.outcome


async def test_an_event_is_delivered_once_and_then_a_duplicate(
    relay: Worker, svix: Simulator
) -> None:
    first, names = await handle(relay, push(event("evt_1")))
    again, _ = await handle(relay, event("evt_1"))
    assert (answer(first), answer(again)) == ((200, "delivered"), (200, "duplicate"))
    assert names == Names("evt_1", "user.created", "acme")
    [message] = svix.messages
    assert first.svix_message_id == again.svix_message_id == message.id


async def test_an_id_that_comes_again_with_another_payload_has_a_remark(relay: Worker) -> None:
    await handle(relay, push(event("evt_1")))
    again, _ = await handle(relay, push(event("evt_1", data={"changed": True})))
    assert (again.remark, again.severity) == (Remark.PAYLOAD_CHANGED, "WARNING")


@pytest.mark.parametrize(
    ("fault", "by_hand", "pushed", "outcome"),
    [
        ({"status": 401}, 500, 500, "misconfigured"),
        ({"status": 302, "headers": {"Location": "/elsewhere"}}, 500, 500, "misconfigured"),
        ({"status": 413}, 422, 200, "rejected"),
        ({"status": 400}, 422, 200, "rejected"),
        ({"status": 429, "headers": {"Retry-After": "3600"}}, 429, 429, "rate_limited"),
        ({"status": 503}, 500, 500, "unavailable"),
    ],
)
async def test_each_failure_of_svix_is_answered_as_the_table_says(
    relay: Worker,
    svix: Simulator,
    *,
    fault: dict[str, Any],
    by_hand: int,
    pushed: int,
    outcome: str,
) -> None:
    """Only a push that can never succeed is parked."""
    for number in range(2):  # a nack comes after two acks, or at its deadline
        await handle(relay, push(event(f"evt_before_{number}"), f"before {number}"))
    svix.inject(Fault("status", body="json", **fault))
    (hand, _), (push_, _) = await asyncio.gather(
        handle(relay, event("evt_1")), handle(relay, push(event("evt_2")))
    )
    assert answer(hand) == (by_hand, outcome)
    assert answer(push_) == (pushed, outcome)
    assert (push_.dead_letter is not None) == (outcome == "rejected")
    assert hand.dead_letter is None
    assert len(svix.messages) == 2


async def test_what_was_found_by_asking_has_a_remark(relay: Worker, svix: Simulator) -> None:
    """Svix crashed between storing the message and queueing it.

    No customer gets the message, so the log line has a remark.
    """
    svix.inject(Fault("store_unqueued", status=500, times=1))
    result, _ = await handle(relay, push(event("evt_1")))
    assert answer(result) == (200, "delivered")
    assert (result.remark, result.severity) == (Remark.FANOUT_UNCONFIRMED, "WARNING")


async def test_a_malformed_push_is_parked_and_what_was_posted_by_hand_is_answered(
    relay: Worker,
) -> None:
    body = b'{"id": "evt_1", "type": "user.created"}'
    by_hand, _ = await handle(relay, body)
    pushed, names = await handle(relay, push(body))
    assert answer(by_hand) == (400, "malformed")
    assert answer(pushed) == (200, "malformed")
    assert pushed.dead_letter
    assert names == Names("evt_1", "user.created", None)


async def test_a_body_that_broke_off_is_nacked_and_never_parked(relay: Worker) -> None:
    """If it were parked, Pub/Sub would not send the whole body again."""

    async def breaks_off() -> AsyncIterator[bytes]:
        yield push(event("evt_1"))[:40]
        raise ClientDisconnect

    headers = {"user-agent": "APIs-Google; (+https://developers.google.com/webmasters/APIs-Google)"}
    result, _ = await relay.handle(breaks_off(), JSON | headers | {"content-length": "400"})
    assert answer(result) == (408, "incomplete")
    assert result.dead_letter is None


async def not_admitted(relay: Worker, **headers: str) -> asyncio.Task[tuple[Result, Names]]:
    """A request whose body was not admitted in time, because other requests held all the room."""

    async def never() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    declared = JSON | {"content-length": str(relay._settings.bodies_mib * 2**20 // HOLDERS)}
    holding = [asyncio.create_task(relay.handle(never(), declared)) for _ in range(HOLDERS)]
    await asyncio.sleep(0)
    waiting = asyncio.create_task(handle(relay, b" " * 20_000, **headers))
    await asyncio.sleep(BUDGET - ATTEMPT_SECONDS + 0.5)  # until it is too late for a turn
    for each in holding:
        each.cancel()
    await asyncio.gather(*holding, return_exceptions=True)
    return waiting


async def test_a_fault_before_the_body_is_read_has_an_outcome_too(relay: Worker) -> None:
    """Python refuses to read a number of over 4,300 digits, such as this Content-Length."""
    result, _ = await handle(relay, event("evt_1"), **{"content-length": "9" * 5000})
    assert answer(result) == (500, "unavailable")
    assert "ValueError at intake.py" in (result.detail or "")


async def test_a_body_posted_by_hand_and_not_admitted_is_answered_at_once(relay: Worker) -> None:
    """Only the nacks of pushes are spaced."""
    waiting = await not_admitted(relay)
    async with asyncio.timeout(ATTEMPT_SECONDS / 2):
        result, _ = await waiting
    assert answer(result) == (500, "unavailable")


async def test_the_shutdown_answers_a_push_that_waits_to_be_nacked(
    relay: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its body was not admitted, and it may not be nacked yet. It must still get an outcome."""
    monkeypatch.setattr(worker_module, "_LAST_ATTEMPT_SECONDS", 0.1)
    waiting = await not_admitted(relay, **{"user-agent": "APIs-Google"})
    assert not waiting.done()
    signal.raise_signal(signal.SIGTERM)
    async with asyncio.timeout(ATTEMPT_SECONDS / 2):
        result, _ = await waiting
    assert (answer(result), result.detail) == ((500, "unavailable"), "shutting down")


async def test_refused_credentials_have_an_outcome(svix: Simulator) -> None:
    """The ledger can't be opened. The answer names the outcome, and is not a bare 500."""

    def open_ledger() -> Archive:
        raise LedgerMisconfigured("no credentials")

    async with running_worker(settings(svix), open_ledger) as relay:
        result, _ = await handle(relay, event("evt_1"))
    assert answer(result) == (500, "misconfigured")
    assert result.severity == "CRITICAL"


async def test_a_push_that_waits_to_be_nacked_keeps_its_share_of_the_memory(
    svix: Simulator,
) -> None:
    """Otherwise the bodies would fill the memory while the ledger can't be opened."""
    opened = 0
    all_wait = asyncio.Event()
    is_read = False

    def open_ledger() -> Archive:
        nonlocal opened
        opened += 1
        if opened == HOLDERS:
            all_wait.set()
        raise LedgerMisconfigured("no credentials")

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal is_read
        is_read = True
        yield b""

    async with running_worker(settings(svix), open_ledger) as relay:
        size = {"content-length": str(relay._settings.bodies_mib * 2**20 // HOLDERS)}
        pushes = [push(event(f"evt_{number}")) for number in range(HOLDERS)]
        waiting = [asyncio.create_task(handle(relay, body, **size)) for body in pushes]
        await all_wait.wait()
        late = asyncio.create_task(relay.handle(chunks(), JSON | {"content-length": "20000"}))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not is_read
        for each in (*waiting, late):
            each.cancel()
        await asyncio.gather(*waiting, late, return_exceptions=True)


async def test_a_bug_in_the_relay_has_an_outcome_that_says_where_it_is(
    relay: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exception's message is left out, because it may quote the event."""

    def broken(*_: object) -> None:
        raise TypeError("hunter2")

    monkeypatch.setattr(intake, "read", broken)
    result, _ = await handle(relay, event("evt_1"))
    assert answer(result) == (500, "unavailable")
    assert "TypeError at test_worker.py" in (result.detail or "")
    assert "hunter2" not in (result.detail or "")


async def test_every_request_has_one_log_line(
    relay: Worker, capsys: pytest.CaptureFixture[str]
) -> None:
    await handle(relay, event("evt_1"))
    await handle(relay, b"{")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["outcome"] for line in lines] == ["delivered", "malformed"]


async def test_reconciliation_reports_what_no_customer_gets(
    relay: Worker, svix: Simulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """The report and its log line count a parked event, because no customer gets it."""
    await handle(relay, push(event("evt_1")))
    svix.inject(Fault("status", status=422, body="json", times=1))
    await handle(relay, push(event("evt_2"), "78"))
    capsys.readouterr()
    report = await relay.reconcile()
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["reconciliation"] == report
    assert (report["complete"], report["parked"], report["needs_operator"]) == (True, 1, 1)
    assert line["severity"] == "ERROR"


async def test_a_reconciliation_without_a_ledger_says_so(svix: Simulator) -> None:
    """Cloud Scheduler gets an answer. The alert on missing reconciliations will fire."""

    def open_ledger() -> Archive:
        raise LedgerMisconfigured("no credentials")

    async with running_worker(settings(svix), open_ledger) as relay:
        report = await relay.reconcile()
    assert report == {"complete": False, "failure": "the ledger: no credentials"}


async def test_a_shutdown_answers_all_waiting_requests_and_lets_attempts_end(
    relay: Worker, svix: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One attempt hangs. Others wait for a turn, a back-off, the same event, or their bodies."""
    monkeypatch.setattr(worker_module, "_LAST_ATTEMPT_SECONDS", 0.2)
    monkeypatch.setattr(worker_module, "_LAST_CALL_SECONDS", 0.8)
    svix.inject(Fault("hang", times=1))
    posts = [asyncio.create_task(handle(relay, push(event("evt_hangs"))))]
    async with asyncio.timeout(10):
        while not attempting(relay):  # noqa: ASYNC110 - nothing signals it
            await asyncio.sleep(0.01)
    svix.behaviour.rate = 0.001
    svix.inject(Fault("status", status=503))
    posts += [asyncio.create_task(handle(relay, push(event("evt_hangs")))) for _ in range(3)]
    posts += [asyncio.create_task(handle(relay, push(event(f"evt_{n}")))) for n in range(20)]

    async def never() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    posts.append(asyncio.create_task(relay.handle(never(), JSON | {"content-length": "9"})))
    signal.raise_signal(signal.SIGTERM)
    async with asyncio.timeout(10):
        results = [result for result, _ in await asyncio.gather(*posts)]
    assert {answer(result) for result in results} == {(500, "unavailable")}
    assert {result.detail for result in results} >= {"shutting down"}
