"""A ledger that stalls and fails for seconds, with a thousand pushes waiting: nobody is nacked.

Pub/Sub charges each nack to the whole subscription. In this process, so that a thousand pushes
cost no thousand connections; the ledgers are real ones.
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
from tests.in_process import handle, working

TOKEN = "testsk_stalls"
PUSHES, PROJECTS = 1_000, 20
STALLS, FAILS = 3.0, 1.0  # seconds

Break = Callable[[], Awaitable[None]]
"""Lets the ledger stall, then fail, then recover."""


class Failing:
    """A ledger that fails while it is told to."""

    def __init__(self, ledger: Archive) -> None:
        self._ledger = ledger
        self.fails = False

    def __getattr__(self, name: str) -> Any:
        if self.fails and name != "close":
            raise LedgerUnavailable("the test says so")
        return getattr(self._ledger, name)


@contextlib.asynccontextmanager
async def sqlite(folder: Path) -> AsyncIterator[tuple[Any, Break]]:
    """Stalls because another process holds the file."""
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
    """Stalls because nothing is passed on, fails because connections are dropped."""
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
    """What a push ends as."""
    body = json.dumps(event(f"evt_{number}", project=f"p{number % PROJECTS}")).encode()
    result, _ = await handle(relay, wrapped(body, str(number)))
    return result.outcome


async def nobody_is_nacked(ledger: Any, break_it: Break) -> None:
    """All are delivered, each once, although the ledger broke while most were waiting."""
    async with Simulator(token=TOKEN) as svix:
        svix.conduct.rate, svix.conduct.burst = 150.0, 50.0
        settings = Settings(svix_token=TOKEN, svix_server_url=svix.url, log_level="CRITICAL")
        async with working(settings, lambda: ledger) as relay:
            pushes = [asyncio.create_task(outcome(relay, number)) for number in range(PUSHES)]
            while len(svix.messages) < PUSHES // 10:  # noqa: ASYNC110 - the simulator has no event for it
                await asyncio.sleep(0.01)
            await break_it()
            outcomes = Counter(await asyncio.gather(*pushes))
        assert outcomes == {"delivered": PUSHES}
        assert set(Counter(message.event_id for message in svix.messages).values()) == {1}
        assert len(svix.messages) == PUSHES


async def test_a_stalling_sqlite_ledger_nacks_nobody(tmp_path: Path) -> None:
    async with sqlite(tmp_path) as (ledger, break_it):
        await nobody_is_nacked(ledger, break_it)


async def test_a_stalling_firestore_nacks_nobody(
    firestore_emulator: str, google_project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with firestore(firestore_emulator, google_project, monkeypatch) as (ledger, break_it):
        await nobody_is_nacked(ledger, break_it)
