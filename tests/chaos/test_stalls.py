"""The ledger stalls and fails for seconds while a thousand pushes wait. No push may be nacked.

With each nack, Pub/Sub slows down the whole subscription. The worker runs in this process, so that
a thousand pushes need no connections. The ledgers are real.
"""

import asyncio
import contextlib
import json
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from local.simulator import Simulator
from relay.config import Settings
from relay.ledger import Archive, LedgerUnavailable
from relay.ledger.firestore import FirestoreLedger
from relay.ledger.sqlite import SqliteLedger
from relay.worker import Worker
from tests.chaos.proxy import proxying
from tests.function import event, wrapped
from tests.in_process import handle, running_worker

TOKEN = "testsk_stalls"
PUSHES, PROJECTS = 1_000, 20
STALLS, FAILS = 3.0, 1.0  # seconds

Break = Callable[[], Awaitable[None]]
"""Lets the ledger stall, then fail, then recover."""


class Failing:
    """A ledger that fails while `fails` is set."""

    def __init__(self, ledger: Archive) -> None:
        self._ledger = ledger
        self.fails = False

    def __getattr__(self, name: str) -> Any:
        if self.fails and name != "close":
            raise LedgerUnavailable("the test says so")
        return getattr(self._ledger, name)


@contextlib.asynccontextmanager
async def sqlite(folder: Path) -> AsyncIterator[tuple[Any, Break]]:
    """A ledger that stalls because another connection locks the file."""
    path = folder / "ledger.db"
    failing = Failing(SqliteLedger(path, create=True))

    async def break_it() -> None:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("begin immediate")
            await asyncio.sleep(STALLS)
            other.execute("rollback")
        failing.fails = True
        await asyncio.sleep(FAILS)
        failing.fails = False

    yield failing, break_it


@contextlib.asynccontextmanager
async def firestore(
    emulator: str, project: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Any, Break]]:
    """A ledger behind a proxy. It stalls while the proxy holds bytes, and fails while it is off."""
    async with proxying(emulator) as proxy:
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", f"127.0.0.1:{proxy.port}")

        async def break_it() -> None:
            proxy.stall()
            await asyncio.sleep(STALLS)
            await proxy.down()
            proxy.flow()
            await asyncio.sleep(FAILS)
            proxy.up()

        yield FirestoreLedger.connect(project, "(default)"), break_it


async def outcome(relay: Worker, number: int) -> str:
    """Push an event, and return the outcome."""
    body = json.dumps(event(f"evt_{number}", project=f"p{number % PROJECTS}")).encode()
    result, _ = await handle(relay, wrapped(body, str(number)))
    return result.outcome


async def no_push_is_nacked(ledger: Any, break_it: Break) -> None:
    """Every event is delivered once, although the ledger broke while most pushes were waiting."""
    async with Simulator(token=TOKEN) as svix:
        svix.behaviour.rate, svix.behaviour.burst = 150.0, 50.0
        settings = Settings(svix_token=TOKEN, svix_server_url=svix.url, log_level="CRITICAL")
        async with running_worker(settings, lambda: ledger) as relay:
            pushes = [asyncio.create_task(outcome(relay, number)) for number in range(PUSHES)]
            while len(svix.messages) < PUSHES // 10:  # noqa: ASYNC110 - nothing signals it
                await asyncio.sleep(0.01)
            await break_it()
            outcomes = Counter(await asyncio.gather(*pushes))
        assert outcomes == {"delivered": PUSHES}
        assert set(Counter(message.event_id for message in svix.messages).values()) == {1}
        assert len(svix.messages) == PUSHES


async def test_a_stalling_sqlite_ledger_causes_no_nacks(tmp_path: Path) -> None:
    async with sqlite(tmp_path) as (ledger, break_it):
        await no_push_is_nacked(ledger, break_it)


async def test_a_stalling_firestore_causes_no_nacks(
    firestore_emulator: str, google_project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with firestore(firestore_emulator, google_project, monkeypatch) as (ledger, break_it):
        await no_push_is_nacked(ledger, break_it)
