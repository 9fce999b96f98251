"""The events that a reconciliation still has to judge, in a temporary SQLite file.

A file needs less memory than Python objects would. Even on Cloud Run, where files are in memory, it
takes only about 100 bytes an event. An event is deleted from the file once it is recorded as
delivered and found in Svix, unless its fan-out must be checked. The remaining events are judged
individually.
"""

import json
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

from relay.ledger import DeadLetter, Record, State, key_of
from relay.operate.whereabouts import Message

_OPEN = """
pragma synchronous = off;
pragma journal_mode = off;
create table projects (id integer primary key, name text unique not null);
create table events (
    project integer not null, key blob not null, event_id text not null, state text,
    confirmed integer not null, listed integer not null, message text,
    judged integer not null default 0, primary key (project, key)
) without rowid;
create table letters (
    key blob, id text not null, reason text not null, parked_at text, discarded text,
    discarded_at text, project text, event_id text
);
create index letters_of_event on letters (key);
"""
# `state` is the record's state. It is null if only the event's message was listed. `confirmed` is
# true if the fan-out need not be checked. `listed` is true if the event is so recent that any
# message of it must be in the part of Svix's listing that is read. If no message of such an event
# is found there, Svix has none.

_ADD = """
insert into events (key, project, event_id, state, confirmed, listed)
values (:key, :project, :event_id, :state, :confirmed, :listed)
on conflict do update set
    state = excluded.state, confirmed = excluded.confirmed, listed = excluded.listed
"""

_ADD_MESSAGE = """
insert into events (key, project, event_id, confirmed, listed, message)
values (:key, :project, :event_id, 1, 1, :message)
on conflict do update set message = excluded.message
"""

_UPDATE_MESSAGE = """
update events set message = :message where project = :project and key = :key
"""

_SETTLE = """
delete from events where project = :project and key = :key and state = 'delivered' and confirmed
"""

_OTHER_LETTERS = """
select rowid, * from letters where rowid > ? and (
    key is null
    or rowid = (select min(rowid) from letters as others where others.key = letters.key)
    and not exists (
        select 1 from events join projects on projects.id = events.project
        where projects.name = letters.project and events.key = letters.key
    )
) order by rowid limit 500
"""

_ADD_LETTER = """
insert into letters values (
    :key, :id, :reason, :parked_at, :discarded, :discarded_at, :project, :event_id
)
"""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One event to judge."""

    project: str
    event_id: str
    state: State | None
    """The record's state when the ledger listed it; None if the ledger listed no record."""
    listed: bool
    """Whether the event is so recent that its message, if Svix has one, must be in the part of
    Svix's listing that was read."""
    message: Message | None
    """The event's message; None if Svix did not list one."""


class Worklist:
    """The events of one reconciliation. A context manager, which deletes the file."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="relay-reconcile-")
        path = Path(self._folder.name) / "worklist.db"
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.executescript(_OPEN)
        self._database.execute("begin")  # never committed: nobody reads the file later

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()
        self._folder.cleanup()

    def add_record(self, record: Record, *, listed: bool, confirmed: bool) -> bool:
        """Add an event by its record. Returns whether the event is new.

        If the event is not new, its new record replaces the earlier one.
        """
        row = {
            "key": bytes.fromhex(record.key),
            "project": self._project(record.project),
            "event_id": record.event_id,
            "state": record.state,
            "confirmed": confirmed,
            "listed": listed,
        }
        known = self._database.execute(
            "select 1 from events where project = :project and key = :key", row
        )
        is_new = known.fetchone() is None
        self._database.execute(_ADD, row)
        return is_new

    def add_letter(self, letter: DeadLetter) -> None:
        """Add a dead letter, which may have no names."""
        project, event_id = letter.project, letter.event_id
        has_names = project is not None and event_id is not None
        row = {
            "key": bytes.fromhex(key_of(project or "", event_id or "")) if has_names else None,
            "id": letter.id,
            "reason": letter.reason,
            "parked_at": _text(letter.parked_at),
            "discarded": letter.discarded,
            "discarded_at": _text(letter.discarded_at),
            "project": project,
            "event_id": event_id,
        }
        self._database.execute(_ADD_LETTER, row)

    def add_message(self, project: str, message: Message, *, known_only: bool) -> bool:
        """Add a message that Svix listed. Returns whether its event is done and was deleted.

        An event is done if it is recorded as delivered and its fan-out need not be checked. With
        `known_only`, a message whose event is not in the worklist is ignored.
        """
        event_id = message.event_id or message.id
        key = bytes.fromhex(key_of(project, event_id))
        row = {
            "key": key,
            "project": self._project(project),
            "event_id": event_id,
            "message": _pack(message),
        }
        if self._database.execute(_SETTLE, row).rowcount:
            return True
        self._database.execute(_UPDATE_MESSAGE if known_only else _ADD_MESSAGE, row)
        return False

    def projects(self) -> list[str]:
        """The projects of all records that were added."""
        return [name for (name,) in self._database.execute("select name from projects")]

    def candidates(self, project: str) -> Iterator[Candidate]:
        """The project's remaining events. Read in pages, so events may be marked meanwhile."""
        paging = (
            "select key, event_id, state, listed, message from events "
            "where project = ? and key > ? order by key limit 500"
        )
        after = b""
        while page := self._database.execute(paging, (self._project(project), after)).fetchall():
            for _, event_id, state, listed, message in page:
                yield Candidate(
                    project,
                    event_id,
                    None if state is None else State(state),
                    bool(listed),
                    _unpack(message),
                )
            after = page[-1][0]

    def letters(self, project: str, event_id: str) -> list[DeadLetter]:
        """The event's dead letters, without their payloads."""
        key = bytes.fromhex(key_of(project, event_id))
        rows = self._database.execute("select * from letters where key = ?", (key,))
        return [_letter(*row) for row in rows]

    def other_letters(self) -> Iterator[DeadLetter]:
        """One dead letter per event that is not in the worklist, and all letters without names."""
        after = 0
        while page := self._database.execute(_OTHER_LETTERS, (after,)).fetchall():
            for _, *row in page:
                yield _letter(*row)
            after = page[-1][0]

    def mark_judged(self, project: str, event_id: str) -> None:
        """The event's place is decided."""
        row = (self._project(project), bytes.fromhex(key_of(project, event_id)))
        self._database.execute("update events set judged = 1 where project = ? and key = ?", row)

    def count_unjudged(self) -> int:
        """The number of remaining events that were not judged."""
        counting = "select count(*) from events where not judged"
        return int(self._database.execute(counting).fetchone()[0])

    def _project(self, name: str) -> int:
        self._database.execute("insert or ignore into projects (name) values (?)", (name,))
        found = self._database.execute("select id from projects where name = ?", (name,))
        return int(found.fetchone()[0])


def _letter(
    _key: bytes | None,
    letter_id: str,
    reason: str,
    parked_at: str | None,
    discarded: str | None,
    discarded_at: str | None,
    project: str | None,
    event_id: str | None,
) -> DeadLetter:
    return DeadLetter(
        id=letter_id,
        data=b"",
        reason=reason,
        detail="",
        project=project,
        event_id=event_id,
        parked_at=_time(parked_at),
        discarded=discarded,
        discarded_at=_time(discarded_at),
    )


def _pack(message: Message) -> str:
    accepted_at = message.accepted_at.isoformat()
    return json.dumps(
        [message.id, message.event_id, message.event_type, accepted_at, [*message.channels]]
    )


def _unpack(text: str | None) -> Message | None:
    if text is None:
        return None
    message_id, event_id, event_type, accepted_at, channels = json.loads(text)
    return Message(
        id=message_id,
        event_id=event_id,
        event_type=event_type,
        accepted_at=datetime.fromisoformat(accepted_at),
        channels=frozenset(channels),
    )


def _text(when: datetime | None) -> str | None:
    return None if when is None else when.isoformat()


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
