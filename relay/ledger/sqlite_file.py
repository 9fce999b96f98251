"""Opens the SQLite ledger's file, and creates its tables."""

import sqlite3
import time
from pathlib import Path

from relay.ledger import LedgerMisconfigured

_VERSION = 2
"""The version of the tables below, which the file has as its `user_version`. A file that is not a
ledger usually has 0, SQLite's default."""

# Times are seconds since 1970, UTC.
_TABLES = f"""
create table events (
    key text primary key,
    project text not null,
    event_id text not null,
    event_type text not null,
    state text not null,
    claim text not null,
    lease real not null,
    attempts integer not null,
    payload_sha256 text not null,
    first_claimed_at real not null,
    touched_at real not null,
    delivered_at real,
    svix_message_id text,
    fanout_confirmed integer,
    pubsub_message_id text,
    expires_at real not null
) without rowid;
create index events_touched on events (touched_at);
create index events_undelivered on events (touched_at) where state <> 'delivered';
create table dead_letters (
    id text primary key,
    content blob,
    form text not null,
    reason text not null,
    detail text not null,
    message_id text,
    subscription text,
    project text,
    event_id text,
    event_type text,
    svix_status integer,
    svix_code text,
    discarded text,
    discarded_at real,
    parked_at real not null,
    expires_at real not null
);
pragma user_version = {_VERSION};
"""

_EXPIRE = """
delete from events where expires_at < unixepoch();
delete from dead_letters where expires_at < unixepoch();
"""


def open_file(path: Path, give_up_at: float, *, create: bool) -> sqlite3.Connection:
    """A connection to the ledger in this file. With `create`, a missing ledger is created.

    `give_up_at` is the `time.monotonic()` at which to stop waiting for other processes. Raises
    `sqlite3.Error`, and `LedgerMisconfigured` if the file is missing or is not a ledger.
    """
    if not create and not path.exists():
        raise LedgerMisconfigured(f"{path} does not exist: only the function creates a ledger")
    remaining = max(0.0, give_up_at - time.monotonic())
    database = sqlite3.connect(path, timeout=remaining, isolation_level=None)
    try:
        if create:
            _enable_wal(database, give_up_at)
            # In one transaction, because several processes may open a new file simultaneously.
            database.execute("begin immediate")
            if _is_new(database):
                _run(database, _TABLES)
            _check_version(database, path)
            _run(database, _EXPIRE)
            database.execute("commit")
        else:
            _check_version(database, path)
    except BaseException:
        database.close()
        raise
    database.row_factory = sqlite3.Row
    return database


def _is_new(database: sqlite3.Connection) -> bool:
    return database.execute("select 1 from sqlite_schema").fetchone() is None


def _check_version(database: sqlite3.Connection, path: Path) -> None:
    (version,) = database.execute("pragma user_version").fetchone()
    if version != _VERSION:
        raise LedgerMisconfigured(
            f"{path} is not a ledger of this version of the relay (its user_version is {version},"
            f" not {_VERSION}): name another file"
        )


def _run(database: sqlite3.Connection, script: str) -> None:
    """Run statements within the open transaction; `executescript` would commit it first."""
    for statement in script.split(";"):
        database.execute(statement)


def _enable_wal(database: sqlite3.Connection, give_up_at: float) -> None:
    """Turn on write-ahead logging, so that readers and the writer do not wait for each other.

    `synchronous` stays FULL, because an acknowledged event must be recorded even after a power cut.
    """
    while True:
        try:
            database.execute("pragma journal_mode = wal")
        except sqlite3.OperationalError as failure:
            # SQLite's busy handler does not wait for this statement, because two processes that
            # open a new file simultaneously would deadlock
            # (https://www.sqlite.org/c3ref/busy_handler.html).
            is_busy = failure.sqlite_errorcode == sqlite3.SQLITE_BUSY
            if not is_busy or time.monotonic() > give_up_at:
                raise
            time.sleep(0.01)
        else:
            return
