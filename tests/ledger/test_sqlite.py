"""What only the SQLite ledger must handle: other processes, restarts, and the file system."""

import asyncio
import contextlib
import os
import re
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import pytest

from local.processes import Server, running
from relay.ledger import (
    Claim,
    Duplicate,
    InProgress,
    LedgerMisconfigured,
    LedgerUnavailable,
)
from relay.ledger.sqlite import _LETTERS, _TOUCHED, _UNDELIVERED, SqliteLedger
from tests.ledger.events import claimed, delivered, event, letter

ROOT = Path(__file__).parents[2]


class Open(Protocol):
    """Opens the ledger in a file."""

    def __call__(self, path: Path, *, create: bool = True) -> SqliteLedger:
        """Open another ledger."""


@pytest.fixture
async def open_ledger() -> AsyncIterator[Open]:
    """A function that opens ledgers. They are closed at the end."""
    opened: list[SqliteLedger] = []

    def open_one(path: Path, *, create: bool = True) -> SqliteLedger:
        opened.append(SqliteLedger(path, create=create))
        return opened[-1]

    yield open_one
    for ledger in opened:
        await ledger.close()


def script(program: str, *arguments: object) -> contextlib.AbstractContextManager[Server]:
    """Start a Python process, and wait until it prints "ready"."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return running(command, ready="ready", cwd=ROOT)


LOCK = """
import sqlite3, sys, time
sqlite3.connect(sys.argv[1], isolation_level=None).execute("begin exclusive")
print("ready", flush=True)
time.sleep(600)
"""


async def test_a_call_to_a_locked_database_is_given_up(
    open_ledger: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends at the time limit and does not block the event loop. Later calls succeed."""
    ledger = open_ledger(tmp_path / "ledger.db")
    claim = await claimed(ledger, event("evt_before"))
    with script(LOCK, tmp_path / "ledger.db"), monkeypatch.context() as impatient:
        impatient.setattr("relay.ledger.sqlite.LEDGER_CALL_SECONDS", 1.0)
        calls = [asyncio.ensure_future(ledger.claim(event(f"evt_{n}"))) for n in range(20)]
        settling = asyncio.ensure_future(ledger.complete(claim, "msg_1", fanout_confirmed=True))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not any(call.done() for call in calls)
        failures = await asyncio.gather(*calls, settling, return_exceptions=True)
        assert {type(failure) for failure in failures} == {LedgerUnavailable}
    await ledger.complete(claim, "msg_1", fanout_confirmed=True)
    await claimed(ledger, event("evt_after"))


@pytest.mark.parametrize("fault", ["no directory", "a directory", "not a database"])
async def test_a_file_that_cannot_be_opened_is_named(
    open_ledger: Open, tmp_path: Path, fault: str
) -> None:
    """A person must correct the path. After that, no restart is needed."""
    path = tmp_path / "sub" / "ledger.db"
    if fault == "a directory":
        path.mkdir(parents=True)
    elif fault == "not a database":
        path.parent.mkdir()
        path.write_text("something else entirely" * 100)
    ledger = open_ledger(path)
    with pytest.raises(LedgerMisconfigured, match=re.escape(str(path))):
        await ledger.claim(event())
    if fault == "no directory":
        path.parent.mkdir()
        await claimed(ledger, event())


async def test_a_failure_in_the_middle_leaves_no_transaction_open(
    open_ledger: Open, tmp_path: Path
) -> None:
    """Otherwise every later call of every process would find the database locked."""
    ledger = open_ledger(tmp_path / "ledger.db")
    await claimed(ledger, event())
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.db")) as database:
        database.execute("alter table dead_letters rename to elsewhere")
        with pytest.raises(LedgerUnavailable):
            await ledger.park(letter())
        database.execute("alter table elsewhere rename to dead_letters")
    await ledger.park(letter())


DELIVER_AND_WAIT = """
import asyncio, sys, time
from pathlib import Path
from relay.ledger.sqlite import SqliteLedger
from tests.ledger.events import claimed, delivered, event

async def main():
    ledger = SqliteLedger(Path(sys.argv[1]), create=True, lease=3600)
    await delivered(ledger, event("evt_delivered"))
    await claimed(ledger, event("evt_claimed"))
    print("ready", flush=True)
    time.sleep(600)

asyncio.run(main())
"""


async def test_records_survive_the_death_of_the_process(open_ledger: Open, tmp_path: Path) -> None:
    """The process is killed. Its delivery and its claim are still recorded."""
    with script(DELIVER_AND_WAIT, tmp_path / "ledger.db") as server:
        os.kill(server.pid, signal.SIGKILL)
        server.process.wait()
        ledger = open_ledger(tmp_path / "ledger.db")
        again = await ledger.claim(event("evt_delivered"))
        assert again == Duplicate("msg_1", payload_changed=False, attempts=1)
        assert isinstance(await ledger.claim(event("evt_claimed")), InProgress)


RACE = """
import asyncio, random, sys
from pathlib import Path
from relay.ledger import Claim
from relay.ledger.sqlite import SqliteLedger
from tests.ledger.events import event

async def main():
    print("ready", flush=True)
    while not Path(sys.argv[2]).exists():
        await asyncio.sleep(0.001)
    ledger = SqliteLedger(Path(sys.argv[1]), create=True, lease=3600)
    events = [event(f"evt_{n}") for n in range(50)]
    random.shuffle(events)

    async def deliver(what):
        claim = await ledger.claim(what)
        if isinstance(claim, Claim):
            await ledger.complete(claim, "msg_1", fanout_confirmed=True)
            print("won", what.id, flush=True)

    await asyncio.gather(*map(deliver, events))
    await ledger.close()

asyncio.run(main())
"""


async def test_of_several_processes_one_claims_each_event(
    open_ledger: Open, tmp_path: Path
) -> None:
    """Four processes race for the same 50 events, beginning with the creation of the file."""
    with contextlib.ExitStack() as stack:
        racers = [
            stack.enter_context(script(RACE, tmp_path / "ledger.db", tmp_path / "go"))
            for _ in range(4)
        ]
        (tmp_path / "go").touch()
        ended = await asyncio.gather(
            *(asyncio.to_thread(racer.process.wait, 60) for racer in racers)
        )
        output = "".join(racer.output() for racer in racers)
        assert ended == [0, 0, 0, 0], output
    won = re.findall(r"won (\S+)", output)
    assert sorted(won) == sorted(f"evt_{n}" for n in range(50))
    ledger = open_ledger(tmp_path / "ledger.db")
    assert isinstance(await ledger.claim(event("evt_0")), Duplicate)


async def test_a_new_file_may_be_opened_by_several_at_once(tmp_path: Path) -> None:
    """SQLite itself would refuse some of these openings, so the ledger repeats them.

    That is rare, so the test needs 60 files.
    """
    for n in range(60):
        ledgers = [SqliteLedger(tmp_path / f"{n}.db", create=True) for _ in range(3)]
        answers = await asyncio.gather(*(ledger.claim(event()) for ledger in ledgers))
        assert Counter(map(type, answers)) == {Claim: 1, InProgress: 2}
        for ledger in ledgers:
            await ledger.close()


async def test_expired_records_are_deleted_at_opening(open_ledger: Open, tmp_path: Path) -> None:
    """Firestore's TTL does the same. The other records stay."""
    path = tmp_path / "ledger.db"
    ledger = open_ledger(path)
    for name in ("evt_old", "evt_new"):
        await delivered(ledger, event(name))
    await ledger.park(letter())
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("update events set expires_at = 1 where event_id = 'evt_old'")
        database.execute("update dead_letters set expires_at = 1")
    later = open_ledger(path)
    assert isinstance(await later.claim(event("evt_new")), Duplicate)
    await claimed(later, event("evt_old"))
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("select count(*) from dead_letters").fetchone() == (0,)


async def test_a_missing_ledger_is_refused(open_ledger: Open, tmp_path: Path) -> None:
    """Otherwise a typo in the path would look like an empty ledger."""
    path = tmp_path / "typo.db"
    operators = open_ledger(path, create=False)
    for call in (operators.record("0" * 64), anext(operators.undelivered())):
        with pytest.raises(LedgerMisconfigured, match="does not exist"):
            await call
    assert not path.exists()
    # When the function has created it, the same command can go on.
    await delivered(open_ledger(path), event())
    assert [record.event_id async for record in operators.undelivered()] == []
    assert isinstance(await operators.claim(event()), Duplicate)


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("theirs", ["another program's", "another version's"])
async def test_a_file_of_another_version_is_refused(
    open_ledger: Open, tmp_path: Path, theirs: str, *, create: bool
) -> None:
    """It is neither read nor changed. The error says what the file is."""
    path = tmp_path / "ledger.db"
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("create table events (key text primary key)")
        if theirs == "another version's":
            database.execute("pragma user_version = 3")
    with pytest.raises(LedgerMisconfigured, match="not a ledger of this version"):
        await open_ledger(path, create=create).claim(event())
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("select name from sqlite_schema").fetchall() == [
            ("events",),
            ("sqlite_autoindex_events_1",),
        ]


async def test_a_reader_does_not_wait_for_a_writer(open_ledger: Open, tmp_path: Path) -> None:
    """An operator's command on a busy ledger neither waits nor delays the function."""
    path = tmp_path / "ledger.db"
    await delivered(open_ledger(path), event())
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("begin immediate")
        found = open_ledger(path, create=False).touched_since(datetime(2000, 1, 1, tzinfo=UTC))
        assert [record.event_id async for record in found] == ["evt_1"]


@pytest.mark.parametrize("query", [_UNDELIVERED, _TOUCHED, _LETTERS])
async def test_no_query_reads_the_whole_ledger(
    open_ledger: Open, tmp_path: Path, query: str
) -> None:
    """Each query uses an index, and needs no sort."""
    path = tmp_path / "ledger.db"
    await delivered(open_ledger(path), event())
    values = dict.fromkeys(re.findall(r":(\w+)", query), "")
    with contextlib.closing(sqlite3.connect(path)) as database:
        plan = [row[3] for row in database.execute(f"explain query plan {query}", values)]
    (step,) = plan  # a sort would be a step of its own
    assert step.startswith("SEARCH")
    assert "INDEX" in step
