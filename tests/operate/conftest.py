"""Runs the operator's commands in this process, with the Svix simulator in a thread."""

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click.testing
import pytest

from local.behaviour import Fault
from local.simulator import Simulator
from local.svix import wire
from local.svix.store import Endpoint, StoredMessage
from relay.config import Settings
from relay.envelope import Names, Source, read
from relay.ledger import Archive, Claim, DeadLetter, LedgerUnavailable, Record, State, key_of
from relay.operate.commands import main
from relay.operate.svix import Pace, SvixView
from relay.outcome import Outcome, Result
from relay.worker import ledger_opener
from tests.function import ROOT, TOKEN


class Svix:
    """A simulator that runs in a thread, so that commands can have their own event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.simulator = Simulator(TOKEN)
        self.run(self.simulator.__aenter__())
        self.url = self.simulator.url

    def run(self, awaitable: object) -> object:
        """Await something in the simulator's loop."""
        return asyncio.run_coroutine_threadsafe(awaitable, self.loop).result(30)  # type: ignore[arg-type] # whatever a coroutine returns

    def close(self) -> None:
        """Stop it."""
        self.run(self.simulator.__aexit__())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def reset(self) -> None:
        """Make the simulator like new."""
        self._call(self.simulator.reset)
        self.simulator.behaviour = replace(Simulator(TOKEN).behaviour)

    def inject(self, kind: str, **details: object) -> None:
        """Add a fault. By default it affects GET requests."""
        fault = Fault(kind, **{"method": "GET", "body": "json", **details})  # type: ignore[arg-type] # the fields of Fault
        self._call(self.simulator.inject, fault)

    def clear_faults(self) -> None:
        """Remove all faults."""
        self._call(self.simulator.clear_faults)

    def add_message(
        self,
        event_id: str | None,
        *,
        project: str = "acme",
        age: timedelta = timedelta(0),
        event_type: str = "user.created",
    ) -> StoredMessage:
        """Add a message that Svix accepted `age` ago. It is sent to no endpoint."""
        store, now = self.simulator.store, datetime.now(UTC) - age
        new = wire.NewMessage(
            event_id=event_id,
            event_type=event_type,
            text="{}",
            channels=None,
            tags=(),
            application=None,
        )
        application = store.find_application(project) or store.create_application(
            project, project, now
        )
        return store.add_message(application, new, for_ever=False, now=now)

    def add_endpoint(
        self, url: str, *, project: str = "acme", age: timedelta = timedelta(days=1)
    ) -> Endpoint:
        """Add an endpoint that was created `age` ago."""
        store, created_at = self.simulator.store, datetime.now(UTC) - age
        application = store.find_application(project) or store.create_application(
            project, project, created_at
        )
        endpoint = Endpoint(
            f"ep_{len(application.endpoints)}",
            "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
            created_at,
            url,
        )
        application.endpoints[endpoint.id] = endpoint
        return endpoint

    def send_on(self, message: StoredMessage, endpoint: Endpoint) -> None:
        """Send a message to an endpoint, and wait for the attempt to be recorded."""
        dispatcher = self.simulator._dispatcher
        assert dispatcher is not None
        self._call(lambda: dispatcher._start(message, endpoint, is_manual=False))
        self.wait_for_attempt(message, endpoint)

    def wait_for_attempt(self, message: StoredMessage, endpoint: Endpoint) -> None:
        """Wait until a message was attempted at an endpoint."""
        give_up_at = time.monotonic() + 30
        while endpoint.id not in self.simulator.store.last_attempts(message.id):
            assert time.monotonic() < give_up_at, "the message was not sent on"
            time.sleep(0.01)

    @property
    def paths(self) -> list[str]:
        """The methods and paths of all calls so far, without queries."""
        return [f"{call.method} {call.path.partition('?')[0]}" for call in self.simulator.calls]

    def _call(self, function: object, *arguments: object) -> None:
        async def within() -> None:
            function(*arguments)  # type: ignore[operator] # a method of the simulator

        self.run(within())


@pytest.fixture(scope="module")
def running_svix() -> Iterator[Svix]:
    """The module's simulator."""
    running = Svix()
    try:
        yield running
    finally:
        running.close()


@pytest.fixture
def svix(running_svix: Svix) -> Svix:
    """The simulator, like new."""
    running_svix.reset()
    return running_svix


@pytest.fixture
async def view(svix: Svix) -> AsyncIterator[SvixView]:
    """A view of the simulator that never waits."""
    async with SvixView(TOKEN, svix.url, Pace(10_000), patience=0) as view:
        yield view


@pytest.fixture(params=["sqlite"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The settings of the test's own ledger. `both_ledgers` runs a test on each kind."""
    if request.param == "sqlite":
        return {"LEDGER": f"sqlite:{tmp_path / 'ledger.db'}"}
    address = request.getfixturevalue("firestore_emulator")
    project = f"test-{uuid.uuid4().hex[:12]}"
    return {"FIRESTORE_EMULATOR_HOST": address, "GOOGLE_CLOUD_PROJECT": project}


both_ledgers = pytest.mark.parametrize("ledger", ["sqlite", "firestore"], indirect=True)


@pytest.fixture
def settings(svix: Svix, ledger: dict[str, str]) -> dict[str, str]:
    """The environment of a function with this Svix and this ledger."""
    return {"SVIX_TOKEN": TOKEN, "SVIX_SERVER_URL": svix.url, **ledger}


@pytest.fixture
async def archive(relay: "Relay") -> AsyncIterator[Archive]:
    """The ledger, opened in the test's event loop."""
    archive = ledger_opener(Settings.from_environment(relay.settings), create=True)()
    try:
        yield archive
    finally:
        await archive.close()


@dataclass(frozen=True, slots=True)
class Rows:
    """Writes records into SQLite's file, because the ledger itself can't write old times."""

    path: Path

    def add(
        self,
        state: State,
        *event_ids: str,
        project: str = "acme",
        untouched: timedelta = timedelta(0),
        age: timedelta = timedelta(0),
        message_id: str | None = None,
        confirmed: bool = True,
        attempts: int = 1,
    ) -> None:
        """Add records in this state, last written `untouched` ago and first claimed `age` ago."""
        now = time.time()
        delivered = state is State.DELIVERED
        touched_at = now - untouched.total_seconds()
        with contextlib.closing(sqlite3.connect(self.path)) as database, database:
            database.executemany(
                "insert into events values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        key_of(project, event_id),
                        project,
                        event_id,
                        "user.created",
                        state,
                        "token",
                        30.0,
                        attempts,
                        "0" * 64,
                        now - max(age, untouched).total_seconds(),
                        touched_at,
                        touched_at if delivered else None,
                        message_id or ("msg_1" if delivered else None),
                        int(confirmed) if delivered else None,
                        None,
                        now + 1e6,
                    )
                    for event_id in event_ids
                ],
            )

    def add_letters(self, count: int) -> None:
        """Add dead letters without payloads, with two reasons in turn."""
        now = time.time()
        with contextlib.closing(sqlite3.connect(self.path)) as database, database:
            database.executemany(
                "insert into dead_letters (id, form, reason, detail, event_id, parked_at,"
                " expires_at) values (?, 'data', 'rejected', ?, ?, ?, ?)",
                [
                    (key_of("", str(n)), f"Svix: {413 + n % 2}", f"evt_{n}", now + n, now + 1e6)
                    for n in range(count)
                ],
            )


def letter(event_id: str | None, project: str | None = "acme", **more: object) -> DeadLetter:
    """A dead letter of an event, like one that a delivery parks."""
    body = json.dumps({"id": event_id, "type": "user.created", "project": project, "data": SECRET})
    outcome = more.pop("outcome", Outcome.REJECTED)
    result = Result(outcome=outcome, detail=more.pop("detail", "Svix: 413"), **more)  # type: ignore[arg-type] # the fields of Result
    source = Source(
        pushed=True,
        data=body.encode(),
        message_id=f"{project}-{event_id}",
        subscription="projects/local/subscriptions/relay",
    )
    return DeadLetter.of(result, source, Names(event_id, "user.created", project))


SECRET = "hush-1"
"""A part of every payload. No command may print it without `--payload`."""


Within = Callable[[Archive], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Relay:
    """Runs `python -m relay`, in this process."""

    settings: dict[str, str]

    def __call__(self, *arguments: str, **environment: str | None) -> click.testing.Result:
        """Run a command. Returns its `exit_code`, `stdout` and `stderr`."""
        runner = click.testing.CliRunner(env={**self.settings, **environment})
        result = runner.invoke(main, arguments)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def json(self, *arguments: str, status: int = 0, **environment: str) -> Any:
        """Run a command with `--json`. Returns its output, parsed."""
        result = self(*arguments, "--json", **environment)
        assert result.exit_code == status, result.output
        return json.loads(result.stdout)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start a command as a process, with default signal handling."""
        return subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-m", "relay", *arguments],
            env=os.environ | self.settings | environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_default_signals,  # noqa: PLW1509 - no other thread holds a lock it needs
        )

    def within(self, work: Within) -> Any:
        """Do something with the ledger, which is created if it does not exist."""

        async def running() -> Any:
            archive = ledger_opener(Settings.from_environment(self.settings), create=True)()
            try:
                return await work(archive)
            finally:
                await archive.close()

        return asyncio.run(running())

    def park(self, *letters: DeadLetter) -> None:
        """Park dead letters."""

        async def park(archive: Archive) -> None:
            for parked in letters:
                await archive.park(parked)

        self.within(park)

    def settle(self, state: State, *event_ids: str, confirmed: bool = True) -> None:
        """Claim events, and leave them delivered, released or claimed."""

        async def settle(archive: Archive, event_id: str) -> None:
            body = json.dumps({"id": event_id, "type": "user.created", "project": "acme"})
            event = read(body.encode(), {"content-type": "application/json"}, ())
            claim = await archive.claim(event)
            assert isinstance(claim, Claim)
            if state is State.DELIVERED:
                await archive.complete(claim, "msg_1", fanout_confirmed=confirmed)
            elif state is State.RELEASED:
                await archive.release(claim)

        async def settle_all(archive: Archive) -> None:
            for start in range(0, len(event_ids), 50):
                some = event_ids[start : start + 50]
                await asyncio.gather(*(settle(archive, event_id) for event_id in some))

        self.within(settle_all)

    def letters(self) -> list[DeadLetter]:
        """The parked letters."""

        async def letters(archive: Archive) -> list[DeadLetter]:
            return [letter async for letter in archive.dead_letters()]

        found: list[DeadLetter] = self.within(letters)
        return found

    def record(self, event_id: str) -> Record | None:
        """An event's record."""
        found: Record | None = self.within(lambda archive: archive.record(key_of("acme", event_id)))
        return found


def _default_signals() -> None:
    # A script that starts the tests with `&` leaves SIGINT ignored, and child processes inherit it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def relay(settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Relay:
    """The commands, with an empty ledger."""
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    relay = Relay(settings)
    for _ in range(10):  # a new emulator takes longer than a ledger's time limit
        with contextlib.suppress(LedgerUnavailable):
            relay.record("none")
            break
    return relay


@pytest.fixture
def rows(relay: Relay, tmp_path: Path) -> "Rows":
    """Writes records of any age into SQLite's file."""
    return Rows(tmp_path / "ledger.db")
