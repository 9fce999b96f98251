"""The ledger in one SQLite file, for a laptop or a single node. Needs no cloud and no emulator.

Several processes of one machine may share the file. A claim is one `BEGIN IMMEDIATE` transaction,
and SQLite allows one writer at a time. Leases are judged by the machine's clock, which all the
processes read. The file must not be on a network file system (https://www.sqlite.org/wal.html).
When the Cloud Function opens the file, it deletes the records and letters that have expired.
"""

import asyncio
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

from relay.envelope import Event, Form
from relay.ledger import (
    DEAD_LETTER_LIFETIME,
    LEASE_SECONDS,
    LEDGER_CALL_SECONDS,
    RECORD_LIFETIME,
    Claim,
    ClaimLost,
    DeadLetter,
    Duplicate,
    InProgress,
    LedgerMisconfigured,
    LedgerUnavailable,
    Record,
    State,
    key_of,
)
from relay.ledger.content import pack, unpack
from relay.ledger.patience import patiently
from relay.ledger.sqlite_file import open_file

_T = TypeVar("_T")

# A later claim keeps the names, payload_sha256 and first_claimed_at of the first claim.
_CLAIM = """
insert into events (
    key, project, event_id, event_type, state, claim, lease, attempts, payload_sha256,
    first_claimed_at, touched_at, pubsub_message_id, expires_at
) values (
    :key, :project, :event_id, :event_type, 'claimed', :claim, :lease, 1, :payload_sha256,
    :now, :now, :pubsub_message_id, :expires_at
) on conflict (key) do update set
    state = 'claimed', claim = :claim, lease = :lease, attempts = attempts + 1,
    svix_message_id = null, touched_at = :now, pubsub_message_id = :pubsub_message_id,
    expires_at = :expires_at
"""

_SETTLE = """
update events set
    state = :state, delivered_at = :delivered_at, svix_message_id = :svix_message_id,
    fanout_confirmed = :fanout_confirmed, touched_at = :now, expires_at = :expires_at
where key = :key and claim = :claim and state = 'claimed'
"""

# If the record was written after it was read, its `touched_at` differs.
_REPAIR = """
update events set
    state = :state, delivered_at = :delivered_at, svix_message_id = :svix_message_id,
    fanout_confirmed = :fanout_confirmed, touched_at = :now, expires_at = :expires_at
where key = :key and claim = :claim and touched_at = :version
"""

_UNDELIVERED = """
select * from events
where state <> 'delivered' and (touched_at, key) > (:touched_at, :key)
order by touched_at, key limit :page
"""

_TOUCHED = """
select * from events
where (touched_at, key) > (:touched_at, :key)
order by touched_at, key limit :page
"""

_LISTED = """
id, form, reason, detail, message_id, subscription, project, event_id, event_type, svix_status,
svix_code, discarded, discarded_at, parked_at
"""

_PARK = f"""
insert or ignore into dead_letters ({_LISTED}, content, expires_at) values (
    :id, :form, :reason, :detail, :message_id, :subscription, :project, :event_id, :event_type,
    :svix_status, :svix_code, :discarded, :discarded_at, :parked_at, :content, :expires_at
)
"""  # noqa: S608 - constants from above

_LETTERS = f"""
select {_LISTED} from dead_letters
where id > :after and id >= :prefix and id < :prefix || 'g'
    and (:project is null or project = :project)
    and (:event_id is null or event_id = :event_id)
order by id limit :page
"""  # noqa: S608 - constants from above

_UPDATE = """
update dead_letters set
    reason = :reason, detail = :detail, svix_status = :svix_status, svix_code = :svix_code
where id = :id and discarded is null
"""

_DISCARD = """
update dead_letters set discarded = :why, discarded_at = :now, content = null
where id = :id and discarded is null
"""

_PAGE = 500  # rows

# SQLite's error codes for a file that can't be used until a person acts.
_HOPELESS = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_READONLY}


class SqliteLedger:
    """A ledger in the file at `path`, which the first call opens. `lease` is in seconds.

    With `create`, a missing file is created in its directory, which must exist. Without `create`, a
    missing file raises `LedgerMisconfigured`, and expired records are not deleted.
    """

    def __init__(self, path: Path, *, create: bool, lease: float = LEASE_SECONDS) -> None:
        self._path = path
        self._create = create
        self._lease = lease
        # SQLite calls block, so they run in a thread. One thread is enough, because SQLite allows
        # one writer at a time.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._connection: sqlite3.Connection | None = None

    # -- one event

    async def record(self, key: str) -> Record | None:
        """One event's record; None if there is none."""
        return await self._transact(lambda database: _read(database, key, _now()))

    async def claim(
        self, event: Event, *, previous: Claim | None = None
    ) -> Claim | Duplicate | InProgress:
        """Claim the event, or say why that is not possible."""
        return await self._transact(
            lambda database: _claim(database, event, previous, self._lease), "immediate"
        )

    async def complete(
        self, claim: Claim, svix_message_id: str | None, *, fanout_confirmed: bool
    ) -> None:
        """Record the event as delivered. Raises `ClaimLost` if another delivery has the claim."""
        delivered = _settled(State.DELIVERED, svix_message_id, fanout_confirmed=fanout_confirmed)
        await self._transact(lambda database: _settle(database, claim, delivered), "immediate")

    async def release(self, claim: Claim) -> Claim:
        """End the claim, so that the next delivery can claim the event immediately."""
        released = _settled(State.RELEASED)
        await self._transact(lambda database: _settle(database, claim, released), "immediate")
        return claim

    # -- many events

    def undelivered(self) -> AsyncIterator[Record]:
        """All records that are not delivered, of any age, by the time of their last write."""
        return self._records(_UNDELIVERED, 0.0)

    def touched_since(self, since: datetime) -> AsyncIterator[Record]:
        """The records that were written at `since` or later, in the order of their last write."""
        return self._records(_TOUCHED, since.timestamp())

    async def _records(self, query: str, since: float) -> AsyncIterator[Record]:
        cursor: dict[str, object] = {"touched_at": since, "key": "", "page": _PAGE}
        while True:
            page = await patiently(partial(self._rows, query, dict(cursor)))
            for row in page:
                yield _record(row, _now())
            if len(page) < _PAGE:
                return
            cursor |= {"touched_at": page[-1]["touched_at"], "key": page[-1]["key"]}

    async def repair(
        self,
        record: Record,
        state: State,
        svix_message_id: str | None = None,
        *,
        fanout_confirmed: bool | None = None,
    ) -> None:
        """Write the event's true state. Raises `ClaimLost` if its record was written meanwhile."""
        row = _settled(state, svix_message_id, fanout_confirmed=fanout_confirmed)
        row |= {"key": record.key, "claim": record.claim, "version": record.version}
        if record.delivered_at is not None and state is State.DELIVERED:
            row["delivered_at"] = record.delivered_at.timestamp()
        if not await self._transact(lambda db: db.execute(_REPAIR, row).rowcount, "immediate"):
            raise ClaimLost(f"{record.key} has been written since it was read")

    # -- dead letters

    async def park(self, letter: DeadLetter) -> None:
        """Store a dead letter. If it is already stored, nothing changes."""
        now = _now()
        row = asdict(letter) | {
            "content": await asyncio.to_thread(pack, letter),
            "parked_at": now,
            "expires_at": now + DEAD_LETTER_LIFETIME.total_seconds(),
        }
        await self._write(_PARK, row)

    async def dead_letter(self, letter_id: str) -> DeadLetter | None:
        """One dead letter with its payload. Raises `LetterDamaged` if the payload is incomplete."""
        rows = await self._rows("select * from dead_letters where id = ?", (letter_id,))
        if not rows:
            return None
        if rows[0]["discarded"] is not None:
            return _letter(rows[0], "{}", b"")
        attributes, data = await asyncio.to_thread(unpack, letter_id, rows[0]["content"])
        return _letter(rows[0], attributes, data)

    async def dead_letters(
        self, prefix: str = "", *, project: str | None = None, event_id: str | None = None
    ) -> AsyncIterator[DeadLetter]:
        """The dead letters whose id begins with `prefix`, without `data` and `attributes`."""
        wanted = {"prefix": prefix, "project": project, "event_id": event_id, "page": _PAGE}
        after = ""
        while True:
            page = await patiently(partial(self._rows, _LETTERS, wanted | {"after": after}))
            for row in page:
                yield _letter(row, "{}", b"")
            if len(page) < _PAGE:
                return
            after = page[-1]["id"]

    async def update_dead_letter(self, letter: DeadLetter) -> None:
        """Write the letter's reason and detail, unless it was discarded or deleted."""
        await self._write(_UPDATE, asdict(letter))

    async def discard_dead_letter(self, letter_id: str, why: str) -> None:
        """Erase a letter's payload, and keep the rest."""
        await self._write(_DISCARD, {"id": letter_id, "why": why, "now": _now()})

    async def delete_dead_letter(self, letter_id: str) -> None:
        """Delete a letter that was replayed, unless it was discarded."""
        deleting = "delete from dead_letters where id = :id and discarded is null"
        await self._write(deleting, {"id": letter_id})

    async def close(self) -> None:
        """Close the file, and end the thread."""

        def close() -> None:
            if self._connection is not None:
                self._connection.close()

        await asyncio.get_running_loop().run_in_executor(self._thread, close)
        self._thread.shutdown(wait=False)

    # -- transactions

    async def _rows(
        self, query: str, values: tuple[object, ...] | Mapping[str, object]
    ) -> list[sqlite3.Row]:
        return await self._transact(lambda database: database.execute(query, values).fetchall())

    async def _write(self, statement: str, values: Mapping[str, object]) -> None:
        await self._transact(lambda database: database.execute(statement, values), "immediate")

    async def _transact(
        self, work: Callable[[sqlite3.Connection], _T], mode: str = "deferred"
    ) -> _T:
        """Run `work` in one transaction. Raises `LedgerUnavailable` for SQLite's errors.

        `mode` is `immediate` for writes. Reads are `deferred`, and wait for no writer.
        """
        limit = LEDGER_CALL_SECONDS
        give_up_at = time.monotonic() + limit

        def run() -> _T:
            # Waiting for the thread has used up some of the time. SQLite gets the remaining time.
            remaining = give_up_at - time.monotonic()
            if remaining <= 0:
                raise TimeoutError
            if self._connection is None:
                self._connection = open_file(self._path, give_up_at, create=self._create)
            database = self._connection
            database.execute(f"pragma busy_timeout = {remaining * 1000:.0f}")
            database.execute(f"begin {mode}")
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
            hopeless = getattr(failure, "sqlite_errorcode", None) in _HOPELESS
            kind = LedgerMisconfigured if hopeless else LedgerUnavailable
            raise kind(f"{self._path}: {failure}") from None


def _claim(
    database: sqlite3.Connection, event: Event, previous: Claim | None, lease: float
) -> Claim | Duplicate | InProgress:
    key = key_of(event.project, event.id)
    token = secrets.token_hex(16)
    now = _now()
    record = _read(database, key, now)
    if record is not None and (denial := record.denial(event)):
        is_ours = previous is not None and previous.token == record.claim
        if isinstance(denial, Duplicate) or not is_ours:
            return denial
    row = {
        "key": key,
        "project": event.project,
        "event_id": event.id,
        "event_type": event.type,
        "claim": token,
        "lease": lease,
        "payload_sha256": event.payload_sha256,
        "pubsub_message_id": event.source.message_id,
        "now": now,
        "expires_at": now + RECORD_LIFETIME.total_seconds(),
    }
    database.execute(_CLAIM, row)
    if record is None:
        return Claim(key, token, None, 1, 0.0)
    return Claim(key, token, None, record.attempts + 1, record.age)


def _settle(database: sqlite3.Connection, claim: Claim, settled: dict[str, object]) -> None:
    row = settled | {"key": claim.key, "claim": claim.token}
    if database.execute(_SETTLE, row).rowcount:
        return
    record = _read(database, claim.key, _now())
    if record is None or (record.claim, record.state) != (claim.token, settled["state"]):
        raise ClaimLost(f"someone else has written the record {claim.key}, or it was deleted")


def _settled(
    state: State, svix_message_id: str | None = None, *, fanout_confirmed: bool | None = None
) -> dict[str, object]:
    now = _now()
    return {
        "state": state,
        "delivered_at": now if state is State.DELIVERED else None,
        "svix_message_id": svix_message_id,
        "fanout_confirmed": fanout_confirmed,
        "now": now,
        "expires_at": now + RECORD_LIFETIME.total_seconds(),
    }


def _read(database: sqlite3.Connection, key: str, now: float) -> Record | None:
    row = database.execute("select * from events where key = ?", (key,)).fetchone()
    return None if row is None else _record(row, now)


def _record(row: sqlite3.Row, now: float) -> Record:
    confirmed = row["fanout_confirmed"]
    return Record(
        project=row["project"],
        event_id=row["event_id"],
        event_type=row["event_type"],
        state=State(row["state"]),
        claim=row["claim"],
        lease=row["lease"],
        attempts=row["attempts"],
        payload_sha256=row["payload_sha256"],
        first_claimed_at=_time(row["first_claimed_at"]),
        touched_at=_time(row["touched_at"]),
        read_at=_time(now),
        version=row["touched_at"],
        delivered_at=_time(row["delivered_at"]) if row["delivered_at"] else None,
        svix_message_id=row["svix_message_id"],
        fanout_confirmed=None if confirmed is None else bool(confirmed),
        pubsub_message_id=row["pubsub_message_id"],
    )


def _letter(row: sqlite3.Row, attributes: str, data: bytes) -> DeadLetter:
    fields = {name: row[name] for name in row.keys() if name not in {"content", "expires_at"}}  # noqa: SIM118 - a row iterates over its values
    times = {name: _time(row[name]) for name in ("parked_at", "discarded_at") if row[name]}
    form = Form(row["form"])
    return DeadLetter(**fields | times | {"form": form}, attributes=attributes, data=data)


def _now() -> float:
    """Seconds since 1970, in whole microseconds.

    Converting the number to a datetime and back does not change it. So a query for the records
    since one record's `touched_at` includes that record.
    """
    return datetime.now(UTC).timestamp()


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
