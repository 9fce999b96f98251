"""Compares the ledger's records and dead letters with Svix's messages: was everything sent?

    1. list     the records written in the period, all undelivered records, and the dead letters
    2. read     Svix's messages of each project that has such a record, newest first
    3. judge    each event that steps 1 and 2 leave open: `whereabouts.locate` says where it is
    4. repair   what `Repair` allows
    5. recheck  recent messages that Svix has not yet tried to send to every endpoint

If the ledger or Svix fails, the run retries for minutes. The report names what was not finished.
The report can be read at any time, also after the run was stopped.
"""

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Protocol, TypeVar

from relay.ledger import (
    Archive,
    ClaimLost,
    DeadLetter,
    LedgerMisconfigured,
    LedgerUnavailable,
    Record,
    State,
    key_of,
)
from relay.operate.report import Report
from relay.operate.svix import SvixUnavailable, SvixView
from relay.operate.whereabouts import (
    LOOKED_AT_TWICE,
    Destinations,
    Endpoint,
    Evidence,
    Fanout,
    Message,
    Place,
    Standing,
    SvixAnswer,
    Whereabouts,
    locate,
)
from relay.operate.worklist import Candidate, Worklist

_T = TypeVar("_T")

_CONCURRENT = 16  # events judged concurrently, because the ledger's answers take time
_CLOCKS_APART = timedelta(minutes=1)
"""The maximum difference between Svix's clock and the ledger's."""
_FIRST_BACK_OFF, _LONGEST_BACK_OFF = 1.0, 15.0  # seconds before each retry, doubled each time


class Repair(Enum):
    """What a reconciliation may change."""

    NOTHING = 0
    FANOUT = 1
    """Make Svix send messages that it never sent on."""
    EVERYTHING = 2
    """Also mark as delivered the events that Svix has, and release events that Svix has lost."""


class Progress(Protocol):
    """Receives progress: the name and the size of each phase, and one call per finished item."""

    def begin(self, phase: str, total: int | None = None) -> None:
        """A phase begins. `total` is the number of its items; None if it is not known."""

    def step(self) -> None:
        """An item is done."""

    def note(self, text: str) -> None:
        """Show something that the operator should know immediately."""


@dataclass(frozen=True, slots=True)
class _Unattempted:
    """An event whose message had no attempt at one of its endpoints at the first look."""

    candidate: Candidate
    evidence: Evidence
    message: Message


class Reconciliation:
    """One comparison of the ledger with Svix. `report` has what it found so far.

    `patience`: for how many seconds to retry the read of one record. `svix` and the ledger's
    listings have their own patience. With `look_again`, the run waits and rechecks messages that
    had no attempt at an endpoint. Only the events of `projects` are compared, or all events if it
    is empty. With `every_attempt`, the run checks the fan-out of every message that has a record,
    not only where the fan-out is unconfirmed.
    """

    def __init__(
        self,
        archive: Archive,
        svix: SvixView,
        report: Report,
        progress: Progress,
        *,
        repair: Repair,
        patience: float,
        look_again: bool,
        projects: Collection[str] = (),
        every_attempt: bool = False,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.report = report
        self._archive = archive
        self._svix = svix
        self._progress = progress
        self._repair = repair
        self._patience = patience
        self._look_again = look_again
        self._only = frozenset(projects)
        self._every_attempt = every_attempt
        self._now = now
        self._sleep = sleep
        self._svix_failure: str | None = None
        self._endpoints: dict[str, list[Endpoint]] = {}
        self._endpoints_asked = asyncio.Lock()
        self._unattempted: list[_Unattempted] = []

    async def run(self) -> None:
        """Compare, and fill the report. The report also says if the ledger or Svix failed for long.

        Raises only `LedgerMisconfigured`, because without a ledger there is nothing to report.
        """
        with Worklist() as worklist:
            try:
                await self._list(worklist)
                await self._compare(worklist)
                await self._judge_other_letters(worklist)
                await self._recheck_unattempted()
            except LedgerMisconfigured:
                raise
            except LedgerUnavailable as failure:
                self.report.failure = f"the ledger: {failure}"
            else:
                self.report.failure = self._svix_failure
            finally:
                self.report.unchecked = worklist.count_unjudged()

    # -- list

    async def _list(self, worklist: Worklist) -> None:
        report = self.report
        self._progress.begin("Records")
        async for record in self._archive.undelivered():
            self._add(worklist, record)
        async for record in self._archive.touched_since(report.since):
            late = report.until is not None and record.touched_at > report.until
            if not late and record.state is State.DELIVERED:
                self._add(worklist, record)
        self._progress.begin("Dead letters")
        async for letter in self._archive.dead_letters():
            if not self._only or letter.project in self._only:
                worklist.add_letter(letter)
                self._progress.step()

    def _add(self, worklist: Worklist, record: Record) -> None:
        if self._only and record.project not in self._only:
            return
        # A message of ours is never older than its event's first claim. So if that claim is not
        # before `since`, Svix's listing back to `since` contains the message.
        listed = record.first_claimed_at - _CLOCKS_APART >= self.report.since
        self.report.events += worklist.add_record(
            record, listed=listed, confirmed=self._is_confirmed(record)
        )
        self._progress.step()

    def _is_confirmed(self, record: Record) -> bool:
        """Whether the fan-out of the record's message need not be checked."""
        return record.fanout_confirmed is not False and not self._every_attempt

    # -- read and judge

    async def _compare(self, worklist: Worklist) -> None:
        projects = worklist.projects()
        # In random order, so that runs that are stopped do not always miss the same projects.
        random.shuffle(projects)
        self.report.projects = len(projects)
        self.report.unfinished = projects.copy()
        self._progress.begin("Projects", len(projects))
        for project in projects:
            try:
                if self._svix_failure is None:
                    await self._read_messages(worklist, project)
            except SvixUnavailable as failure:
                self._svix_failure = str(failure)
            await self._judge_all(
                worklist.candidates(project), lambda each: self._judge(worklist, each)
            )
            if self._svix_failure is None:
                self.report.unfinished.remove(project)
            self._progress.step()

    async def _read_messages(self, worklist: Worklist, project: str) -> None:
        since, until = self.report.since, self.report.until
        async for message in self._svix.messages(project, since):
            # After `until`, only the messages of undelivered events matter.
            is_late = until is not None and message.accepted_at > until
            self.report.messages += not is_late
            if worklist.add_message(project, message, known_only=is_late):
                self.report.places[Place.IN_SVIX] += 1

    async def _judge_all(
        self, items: Iterable[_T], judge: Callable[[_T], Coroutine[Any, Any, None]]
    ) -> None:
        """Judge all items, a few concurrently. Raises `LedgerUnavailable`."""
        remaining = iter(items)
        while batch := list(itertools.islice(remaining, _CONCURRENT)):
            try:
                async with asyncio.TaskGroup() as judging:
                    for item in batch:
                        judging.create_task(judge(item))
            except ExceptionGroup as failures:
                raise failures.exceptions[0] from None

    async def _judge(self, worklist: Worklist, candidate: Candidate) -> None:
        project, event_id = candidate.project, candidate.event_id
        letters = worklist.letters(project, event_id)
        record = await self._record(project, event_id)
        svix = await self._ask_svix(candidate, record, letters)
        evidence = Evidence(now=self._now(), record=record, letters=letters, svix=svix)
        where = locate(evidence)
        if where.place is Place.UNKNOWN:
            return
        worklist.mark_judged(project, event_id)
        self._count(where.place, project, event_id, letters)
        if record is None or svix is None:
            return
        await self._repair_record(where.place, record, svix.message)
        is_doubtful = where.place is Place.UNSETTLED or not self._is_confirmed(record)
        if svix.message is not None and is_doubtful:
            await self._check_fanout(candidate, evidence, svix.message)

    async def _ask_svix(
        self, candidate: Candidate, record: Record | None, letters: Sequence[DeadLetter]
    ) -> SvixAnswer | None:
        """Whether Svix has the event's message; None if not known. Calls Svix only if necessary."""
        if candidate.message:
            return SvixAnswer(candidate.message)
        if self._svix_failure is not None or record is None:
            return None
        if record.state is not State.DELIVERED:
            if any(letter.discarded is None for letter in letters):
                return None  # the event was parked, and no delivery was recorded since
            if candidate.listed and candidate.state is record.state:
                return SvixAnswer(None)  # Svix's listing would have had the message
        try:
            return SvixAnswer(await self._svix.message(candidate.project, candidate.event_id))
        except SvixUnavailable as failure:
            self._svix_failure = str(failure)
            return None

    async def _judge_other_letters(self, worklist: Worklist) -> None:
        """Judge the letters of events that are not in the worklist, and letters without names."""
        await self._judge_all(
            worklist.other_letters(), lambda letter: self._judge_letter(worklist, letter)
        )

    async def _judge_letter(self, worklist: Worklist, letter: DeadLetter) -> None:
        project, event_id = letter.project, letter.event_id
        record, letters = None, [letter]
        if project is not None and event_id is not None:
            letters = worklist.letters(project, event_id)
            record = await self._record(project, event_id)
        where = locate(Evidence(now=self._now(), record=record, letters=letters))
        if where.place is Place.PARKED:
            name = event_id or f"dead letter {letter.id[:12]}"
            self._count(where.place, project or "?", name, letters)

    def _count(
        self, place: Place, project: str, event_id: str, letters: Iterable[DeadLetter]
    ) -> None:
        self.report.add(place, project, event_id)
        if place is Place.PARKED:
            self.report.reasons.update(each.reason for each in letters if each.discarded is None)

    # -- repair

    async def _repair_record(self, place: Place, record: Record, message: Message | None) -> None:
        if self._repair is not Repair.EVERYTHING:
            return
        with contextlib.suppress(ClaimLost):  # a delivery has written the record meanwhile
            if place is Place.UNSETTLED and message is not None:
                await self._archive.repair(
                    record, State.DELIVERED, message.id, fanout_confirmed=False
                )
                self.report.settled += 1
            elif place is Place.MISSING:
                # The message id stays. It shows that the event was acknowledged: Pub/Sub will not
                # redeliver it.
                await self._archive.repair(record, State.RELEASED, record.svix_message_id)
                self.report.released += 1

    async def _check_fanout(
        self, candidate: Candidate, evidence: Evidence, message: Message
    ) -> None:
        """Report a message that Svix never sent on. If `Repair` allows it, make Svix send it."""
        project = candidate.project
        try:
            endpoints = await self._endpoints_of(project)
            attempts = await self._svix.attempts(project, message.id)
            svix = SvixAnswer(message, Destinations(endpoints, attempts))
            where = locate(replace(evidence, now=self._now(), svix=svix))
            if where.fanout is Fanout.NEVER_SENT_ON:
                self.report.add(Fanout.NEVER_SENT_ON, project, candidate.event_id)
                if self._repair is not Repair.NOTHING:
                    await self._resend(where, project, message)
            elif self._look_again and any(s.standing is Standing.QUEUED for s in where.standings):
                self._unattempted.append(_Unattempted(candidate, evidence, message))
        except SvixUnavailable as failure:
            self._svix_failure = str(failure)

    async def _resend(self, where: Whereabouts, project: str, message: Message) -> None:
        never = [
            each.endpoint.id for each in where.standings if each.standing is Standing.NEVER_SENT
        ]
        sent = [await self._svix.resend(project, message.id, endpoint) for endpoint in never]
        self.report.resent += all(sent)

    async def _endpoints_of(self, project: str) -> list[Endpoint]:
        async with self._endpoints_asked:
            if project not in self._endpoints:
                self._endpoints = {project: await self._svix.endpoints(project)}
            return self._endpoints[project]

    async def _recheck_unattempted(self) -> None:
        """Look again at the messages that had no attempt at an endpoint, after five minutes."""
        unattempted, self._unattempted = self._unattempted, []
        self._look_again = False
        if not unattempted:
            return
        again_at = max(each.evidence.now for each in unattempted) + LOOKED_AT_TWICE
        wait = (again_at - self._now()).total_seconds()
        what = f"{len(unattempted)} message(s) not yet tried at every endpoint"
        self._progress.note(f"{what}: rechecking in {wait:.0f} s")
        await self._sleep(max(0.0, wait))
        self._progress.begin("Recheck", len(unattempted))
        for each in unattempted:
            evidence = replace(each.evidence, first_looked_at=each.evidence.now)
            await self._check_fanout(each.candidate, evidence, each.message)
            self._progress.step()

    # -- the ledger

    async def _record(self, project: str, event_id: str) -> Record | None:
        """The event's record. Raises `LedgerUnavailable` if the ledger fails for long."""
        key = key_of(project, event_id)
        give_up_at = time.monotonic() + self._patience
        back_off = _FIRST_BACK_OFF
        while True:
            try:
                return await self._archive.record(key)
            except LedgerMisconfigured:
                raise
            except LedgerUnavailable as failure:
                if time.monotonic() + back_off > give_up_at:
                    raise
                self._progress.note(f"the ledger: {failure}; retrying in {back_off:.0f} s")
                await asyncio.sleep(back_off)
                back_off = min(2 * back_off, _LONGEST_BACK_OFF)
