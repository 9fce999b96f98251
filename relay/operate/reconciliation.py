"""Was everything sent? The ledger's records and Svix's messages, laid side by side.

Two passes. The first lists both into a temporary SQLite file, so that memory does not grow with
the ledger, and its join names the candidates. The second reads each candidate's record and
message anew and judges it by those: what was merely under way during the first is no finding.
"""

import asyncio
import contextlib
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Protocol, Self

from svix.models import EndpointOut, MessageOut

from relay.ledger import Archive, ClaimLost, Record, State, key_of
from relay.operate.svix import SvixView

_EXAMPLES = 5
_AT_ONCE = 16
_FIRST_ATTEMPT = timedelta(minutes=5)
"""Svix attempts within seconds; what is younger is not yet worth a person's time."""
_LAST_REDELIVERY = timedelta(hours=1)
"""The retry policy comes back after 10 minutes at most, push backoff after one: a released event
that nobody has brought for so long is not coming by itself."""

_OPEN = """
pragma synchronous = off;
create table ledger (project text, event_id text, state text, primary key (project, event_id));
create table svix (project text, event_id text, message_id text, accepted_at text, owed integer,
                   primary key (project, event_id));
create index svix_message on svix (project, message_id);
"""
# `owed`: an endpoint should have been tried with it, and none was seen to be.

_CANDIDATES = """
select project, event_id, coalesce(owed and accepted_at < :attempted_by, 0)
    from ledger left join svix using (project, event_id)
    where state != 'delivered' or message_id is null or (owed and accepted_at < :attempted_by)
union all
select project, event_id, owed and accepted_at < :attempted_by
    from svix left join ledger using (project, event_id) where state is null
"""


class Finding(StrEnum):
    """What can be wrong with an event; the value is the word in reports."""

    MISSING = "missing"
    ABANDONED = "abandoned"
    UNSENT = "unsent"
    PARKED = "parked"
    UNSETTLED = "unsettled"
    EXTRA = "extra"
    UNATTEMPTED = "unattempted"

    @property
    def is_lost(self) -> bool:
        """Whether a customer goes without the event until somebody does something."""
        return self in {Finding.MISSING, Finding.ABANDONED, Finding.UNSENT, Finding.UNATTEMPTED}


@dataclass(slots=True)
class Report:
    """What was looked at, and what was found."""

    since: datetime
    records: int = 0
    messages: int = 0
    applications: int = 0
    found: Counter[Finding] = field(default_factory=Counter)
    examples: dict[Finding, list[tuple[str, str]]] = field(default_factory=dict)
    """(project, event id), a few of each."""
    mended: int = 0

    def add(self, finding: Finding, project: str, event_id: str) -> None:
        """Count one event."""
        self.found[finding] += 1
        examples = self.examples.setdefault(finding, [])
        if len(examples) < _EXAMPLES:
            examples.append((project, event_id))

    @property
    def is_complete(self) -> bool:
        """Whether everything that came was sent."""
        return not any(count and finding.is_lost for finding, count in self.found.items())


class Progress(Protocol):
    """Told what is listed, of how many, and of each that is done."""

    step: Callable[[], None]

    def begin(self, label: str, length: int) -> None:
        """The next part begins."""


class Reconciliation:
    """One comparison; a context manager, for its temporary file.

    `mend` settles what Svix has, and releases what it hasn't, so that the next delivery sends it.
    """

    def __init__(
        self, archive: Archive, svix: SvixView, lease: timedelta, since: datetime, *, mend: bool
    ) -> None:
        self._archive = archive
        self._svix = svix
        self._lease = lease
        self._mend = mend
        self._report = Report(since)
        self._folder = tempfile.TemporaryDirectory(prefix="relay-reconcile-")
        self._join = sqlite3.connect(Path(self._folder.name) / "join.db", isolation_level=None)
        self._join.executescript(_OPEN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._join.close()
        self._folder.cleanup()

    async def run(self, progress: Progress) -> Report:
        """List, join, judge. Raises `LedgerUnavailable` and `SvixSilent`."""
        started_at = datetime.now(UTC)
        await self._list_records(progress)
        projects = [app.uid or app.id async for app in self._svix.applications()]
        self._report.applications = len(projects)
        progress.begin("Svix", len(projects))
        for project in projects:
            await self._list_messages(project)
            progress.step()
        attempted_by = {"attempted_by": _sortable(started_at - _FIRST_ATTEMPT)}
        counting = f"select count(*) from ({_CANDIDATES})"  # noqa: S608 - a constant of this module, no input
        progress.begin("Confirm", self._join.execute(counting, attempted_by).fetchone()[0])
        candidates = self._join.execute(_CANDIDATES, attempted_by)
        while batch := candidates.fetchmany(_AT_ONCE):
            await asyncio.gather(*(self._judge(*candidate) for candidate in batch))
            for _ in batch:
                progress.step()
        return self._report

    async def _list_records(self, progress: Progress) -> None:
        progress.begin("Ledger", await self._archive.count())
        self._join.execute("begin")
        async for record in self._archive.records():
            progress.step()
            # A claim is stuck however old it is.
            if record.updated_at >= self._report.since or record.state is State.CLAIMED:
                self._report.records += 1
                row = (record.project, record.event_id, record.state)
                self._join.execute("insert or replace into ledger values (?, ?, ?)", row)
        self._join.execute("commit")

    async def _list_messages(self, project: str) -> None:
        since = self._report.since
        endpoints = [endpoint async for endpoint in self._svix.endpoints(project)]
        self._join.execute("begin")
        async for message in self._svix.messages(project, since):
            self._report.messages += 1
            name, owed = _name(message), any(_is_for(e, message) for e in endpoints)
            row = (project, name, message.id, _sortable(message.timestamp), owed)
            self._join.execute("insert or ignore into svix values (?, ?, ?, ?, ?)", row)
        for endpoint in endpoints:
            async for attempt in self._svix.attempts_at(project, endpoint.id, since):
                self._join.execute(
                    "update svix set owed = 0 where project = ? and message_id = ?",
                    (project, attempt.msg_id),
                )
        self._join.execute("commit")

    async def _judge(self, project: str, event_id: str, owed: int) -> None:
        record = await self._archive.record(key_of(project, event_id))
        message = await self._svix.message(project, event_id)
        if finding := await self._finding(record, message):
            self._report.add(finding, project, event_id)
            if self._mend and record is not None:
                await self._settle(finding, record, message)
        if owed and message and not await self._svix.attempts(project, message.id):
            self._report.add(Finding.UNATTEMPTED, project, event_id)

    async def _finding(self, record: Record | None, message: MessageOut | None) -> Finding | None:
        if record is None:
            return Finding.EXTRA if message else None
        if record.lease_left(self._lease) > timedelta(0):
            return None  # under way
        if message:
            return None if record.state is State.DELIVERED else Finding.UNSETTLED
        match record.state:
            case State.DELIVERED:
                return Finding.MISSING
            case State.CLAIMED:
                return Finding.ABANDONED
            case State.RELEASED:
                return await self._waiting(record)

    async def _waiting(self, record: Record) -> Finding | None:
        letters = self._archive.dead_letters(project=record.project, event_id=record.event_id)
        async for _, letter in letters:
            return None if letter.discarded else Finding.PARKED
        waits_long = record.read_at - record.updated_at > _LAST_REDELIVERY
        return Finding.UNSENT if waits_long else None

    async def _settle(self, finding: Finding, record: Record, message: MessageOut | None) -> None:
        state = {
            Finding.UNSETTLED: State.DELIVERED,
            Finding.MISSING: State.RELEASED,
            Finding.ABANDONED: State.RELEASED,
        }.get(finding)
        if state is None:
            return
        with contextlib.suppress(ClaimLost):  # a delivery was faster, and knows better
            await self._archive.mend(record, state, message.id if message else None)
            self._report.mended += 1


def _name(message: MessageOut) -> str:
    """The event's id; Svix's own for what somebody else sent without one."""
    return message.event_id or message.id


def _is_for(endpoint: EndpointOut, message: MessageOut) -> bool:
    """Whether Svix should try this endpoint: the relay's messages have no channels."""
    return (
        not endpoint.disabled
        and not endpoint.channels
        and (not endpoint.event_types or message.event_type in endpoint.event_types)
        and endpoint.created_at < message.timestamp
    )


def _sortable(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="microseconds")
