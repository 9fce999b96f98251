"""The ledger in one SQLite file: for a laptop, and for a single node. No cloud, no emulator.

Safe for several processes of one machine: a claim is one `BEGIN IMMEDIATE` transaction, and
SQLite lets one writer in at a time. All of them read the same machine's clock, so leases are
judged by it. The file must not lie on a network file system (https://www.sqlite.org/wal.html).
What is past its `expires_at` is deleted when the file is opened.
"""

import asyncio
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from relay.envelope import Event
from relay.ledger import (
    DEAD_LETTER_LIFETIME,
    LEDGER_TIMEOUT,
    RECORD_LIFETIME,
    Claim,
    ClaimLost,
    DeadLetter,
    Duplicate,
    InProgress,
    LedgerUnavailable,
    Record,
    State,
    key_of,
)

_T = TypeVar("_T")

# Times are seconds since 1970, UTC. One transaction, as several processes may open a new file.
_OPEN = """
begin immediate;
create table if not exists events (
    key text primary key,
    project text not null,
    event_id text not null,
    event_type text not null,
    state text not null,
    claim text not null,
    attempts integer not null,
    payload_sha256 text not null,
    first_claimed_at real not null,
    updated_at real not null,
    delivered_at real,
    svix_message_id text,
    pubsub_message_id text,
    expires_at real not null
) without rowid;
create table if not exists dead_letters (
    id text primary key,
    data blob not null,
    reason text not null,
    detail text not null,
    message_id text,
    subscription text,
    attributes text not null,
    project text,
    event_id text,
    event_type text,
    svix_status integer,
    svix_code text,
    discarded text,
    parked_at real not null,
    expires_at real not null
);
delete from events where expires_at < unixepoch();
delete from dead_letters where expires_at < unixepoch();
commit;
"""

# A takeover keeps what the first claim wrote: names, payload_sha256 and first_claimed_at.
_CLAIM = """
insert into events (
    key, project, event_id, event_type, state, claim, attempts, payload_sha256,
    first_claimed_at, updated_at, pubsub_message_id, expires_at
) values (
    :key, :project, :event_id, :event_type, 'claimed', :claim, 1, :payload_sha256,
    :now, :now, :pubsub_message_id, :expires_at
) on conflict (key) do update set
    state = 'claimed', claim = :claim, attempts = attempts + 1,
    updated_at = :now, pubsub_message_id = :pubsub_message_id, expires_at = :expires_at
"""

_SETTLE = """
update events set
    state = :state, delivered_at = :delivered_at, svix_message_id = :svix_message_id,
    updated_at = :now, expires_at = :expires_at
where key = :key and claim = :claim and state = :was
"""

_PARK = """
insert or ignore into dead_letters (
    id, data, reason, detail, message_id, subscription, attributes, project, event_id,
    event_type, svix_status, svix_code, discarded, parked_at, expires_at
) values (
    :id, :data, :reason, :detail, :message_id, :subscription, :attributes, :project, :event_id,
    :event_type, :svix_status, :svix_code, :discarded, :parked_at, :expires_at
)
"""

_LETTERS = """
select * from dead_letters
where id > :after and id >= :prefix and id < :prefix || 'g'
    and (:project is null or project = :project)
    and (:event_id is null or event_id = :event_id)
order by id limit :page
"""

_RESTATE = """
update dead_letters set
    data = :data, attributes = :attributes, reason = :reason, detail = :detail,
    svix_status = :svix_status, svix_code = :svix_code, discarded = :discarded
where id = :id
"""

_PAGE = 500  # rows


class SqliteLedger:
    """A ledger in the file at `path`, which is created; its directory must be there."""

    def __init__(self, path: Path, lease: timedelta) -> None:
        self._path = path
        self._lease = lease
        # One thread, for one connection: SQLite has one writer anyway, and the event loop none.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._connection: sqlite3.Connection | None = None

    async def claim(self, event: Event) -> Claim | Duplicate | InProgress:
        """Take the right to send this event, or learn why not."""
        return await self._transact(lambda database: _claim(database, event, self._lease))

    async def complete(self, claim: Claim, svix_message_id: str | None) -> None:
        """Record the event as delivered. Raises `ClaimLost` where the claim is no longer ours."""
        await self._transact(
            lambda database: _settle(database, claim, State.DELIVERED, svix_message_id)
        )

    async def release(self, claim: Claim) -> None:
        """Let the next delivery claim it at once. Raises `ClaimLost` as `complete` does."""
        await self._transact(lambda database: _settle(database, claim, State.RELEASED))

    async def park(self, letter: DeadLetter) -> None:
        """Store a dead letter under its id; parking it again changes nothing."""
        now = time.time()
        times = {"parked_at": now, "expires_at": now + DEAD_LETTER_LIFETIME.total_seconds()}
        row = {"id": letter.id, **asdict(letter), **times}
        await self._transact(lambda database: database.execute(_PARK, row))

    async def record(self, key: str) -> Record | None:
        """One event's record."""
        return await self._transact(lambda database: _read(database, key, time.time()))

    async def count(self) -> int:
        """How many records there are."""
        counting = "select count(*) from events"
        return await self._transact(lambda database: int(database.execute(counting).fetchone()[0]))

    async def records(self) -> AsyncIterator[Record]:
        """All records, ordered by key."""
        paging = "select * from events where key > ? order by key limit ?"
        after = ""
        while True:
            page = await self._rows(paging, (after, _PAGE))
            for row in page:
                yield _record(row, time.time())
            if len(page) < _PAGE:
                return
            after = page[-1]["key"]

    async def mend(self, record: Record, state: State, svix_message_id: str | None = None) -> None:
        """Write what is known of the event by now. Raises `ClaimLost` where it was touched."""
        row = _settled(record.key, record.claim, state, svix_message_id) | {"was": record.state}
        # Any write of a delivery changes the state or the claim: together they are the version.
        if not await self._transact(lambda database: database.execute(_SETTLE, row).rowcount):
            raise ClaimLost(f"{record.key} has been written since it was read")

    async def dead_letter(self, letter_id: str) -> DeadLetter | None:
        """One dead letter, whole."""
        page = await self._rows("select * from dead_letters where id = ?", (letter_id,))
        return _letter(page[0]) if page else None

    async def dead_letters(
        self, prefix: str = "", *, project: str | None = None, event_id: str | None = None
    ) -> AsyncIterator[tuple[str, DeadLetter]]:
        """Those whose id begins so, each with its id, without `data` and `attributes`."""
        wanted = {"prefix": prefix, "project": project, "event_id": event_id, "page": _PAGE}
        after = ""
        while True:
            page = await self._rows(_LETTERS, wanted | {"after": after})
            for row in page:
                yield row["id"], replace(_letter(row), data=b"", attributes="{}")
            if len(page) < _PAGE:
                return
            after = page[-1]["id"]

    async def restate(self, letter_id: str, letter: DeadLetter) -> None:
        """Say anew why the letter is there, or that it was discarded."""
        row = asdict(letter) | {"id": letter_id}
        await self._transact(lambda database: database.execute(_RESTATE, row))

    async def remove(self, letter_id: str) -> None:
        """Delete a dead letter; one that is not there is no fault."""
        deleting = "delete from dead_letters where id = ?"
        await self._transact(lambda database: database.execute(deleting, (letter_id,)))

    async def close(self) -> None:
        """Free the thread and the file."""

        def close() -> None:
            if self._connection is not None:
                self._connection.close()

        await asyncio.get_running_loop().run_in_executor(self._thread, close)
        self._thread.shutdown(wait=False)

    async def _rows(
        self, query: str, values: tuple[object, ...] | Mapping[str, object]
    ) -> list[sqlite3.Row]:
        return await self._transact(lambda database: database.execute(query, values).fetchall())

    async def _transact(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run `work` as one transaction; what SQLite does within ends as `LedgerUnavailable`."""
        limit = LEDGER_TIMEOUT.total_seconds()
        give_up_at = time.monotonic() + limit

        def run() -> _T:
            # SQLite itself waits for other processes, as long as the queue for the thread has left.
            left = give_up_at - time.monotonic()
            if left <= 0:
                raise TimeoutError
            if self._connection is None:
                self._connection = _open(self._path, give_up_at)
            database = self._connection
            database.execute(f"pragma busy_timeout = {left * 1000:.0f}")
            database.execute("begin immediate")
            try:
                result = work(database)
                database.execute("commit")
            finally:
                if database.in_transaction:
                    database.execute("rollback")
            return result

        try:
            async with asyncio.timeout(limit):
                return await asyncio.get_running_loop().run_in_executor(self._thread, run)
        except TimeoutError:
            raise LedgerUnavailable(f"{self._path} did not answer within {limit:g} s") from None
        except sqlite3.Error as failure:
            raise LedgerUnavailable(f"{self._path}: {failure}") from None


def _open(path: Path, give_up_at: float) -> sqlite3.Connection:
    left = max(0.0, give_up_at - time.monotonic())
    database = sqlite3.connect(path, timeout=left, isolation_level=None)
    try:
        _write_ahead(database, give_up_at)
        database.executescript(_OPEN)
    except BaseException:
        database.close()
        raise
    database.row_factory = sqlite3.Row
    return database


def _write_ahead(database: sqlite3.Connection, give_up_at: float) -> None:
    """Keep readers and the writer from waiting for each other.

    `synchronous` stays FULL: what was acknowledged must survive a power cut too.
    """
    while True:
        try:
            database.execute("pragma journal_mode = wal")
        except sqlite3.OperationalError as failure:
            # The one statement for which SQLite does not wait itself: two that open a new file
            # at once would deadlock (https://www.sqlite.org/c3ref/busy_handler.html).
            busy = failure.sqlite_errorcode == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > give_up_at:
                raise
            time.sleep(0.01)
        else:
            return


def _claim(
    database: sqlite3.Connection, event: Event, lease: timedelta
) -> Claim | Duplicate | InProgress:
    key = key_of(event.project, event.id)
    token = secrets.token_hex(16)
    now = time.time()
    record = _read(database, key, now)
    if record and (refusal := record.refusal(event, lease)):
        return refusal
    row = {
        "key": key,
        "project": event.project,
        "event_id": event.id,
        "event_type": event.type,
        "claim": token,
        "payload_sha256": event.payload_sha256,
        "pubsub_message_id": event.source.message_id,
        "now": now,
        "expires_at": now + RECORD_LIFETIME.total_seconds(),
    }
    database.execute(_CLAIM, row)
    if record is None:
        return Claim(key, token, None, 1, timedelta(0))
    return Claim(key, token, None, record.attempts + 1, record.age)


def _settle(
    database: sqlite3.Connection, claim: Claim, state: State, svix_message_id: str | None = None
) -> None:
    row = _settled(claim.key, claim.token, state, svix_message_id)
    if database.execute(_SETTLE, row | {"was": State.CLAIMED}).rowcount:
        return
    record = _read(database, claim.key, time.time())
    if record is None or (record.claim, record.state) != (claim.token, state):
        raise ClaimLost(f"{claim.key} is another delivery's by now, or gone")


def _settled(key: str, token: str, state: State, svix_message_id: str | None) -> dict[str, object]:
    now = time.time()
    return {
        "key": key,
        "claim": token,
        "state": state,
        "delivered_at": now if state is State.DELIVERED else None,
        "svix_message_id": svix_message_id,
        "now": now,
        "expires_at": now + RECORD_LIFETIME.total_seconds(),
    }


def _read(database: sqlite3.Connection, key: str, now: float) -> Record | None:
    row = database.execute("select * from events where key = ?", (key,)).fetchone()
    return None if row is None else _record(row, now)


def _record(row: sqlite3.Row, now: float) -> Record:
    return Record(
        project=row["project"],
        event_id=row["event_id"],
        event_type=row["event_type"],
        state=State(row["state"]),
        claim=row["claim"],
        attempts=row["attempts"],
        payload_sha256=row["payload_sha256"],
        first_claimed_at=_time(row["first_claimed_at"]),
        updated_at=_time(row["updated_at"]),
        read_at=_time(now),
        delivered_at=_time(row["delivered_at"]) if row["delivered_at"] else None,
        svix_message_id=row["svix_message_id"],
        pubsub_message_id=row["pubsub_message_id"],
    )


def _letter(row: sqlite3.Row) -> DeadLetter:
    fields = {name: row[name] for name in row.keys() if name not in {"id", "expires_at"}}  # noqa: SIM118 - a row iterates over its values
    return DeadLetter(**fields | {"parked_at": _time(row["parked_at"])})


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
