"""Was everything sent? The ledger is compared with Svix, in all states of an event."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from local.customer import Customer
from relay.ledger import Archive, LedgerUnavailable, Record, State, key_of
from relay.operate import reconciliation as module
from relay.operate.reconciliation import Reconciliation, Repair
from relay.operate.report import Report
from relay.operate.svix import SvixView
from relay.operate.whereabouts import Fanout, Place
from tests.operate.conftest import Rows, Svix, letter

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@dataclass
class Progress:
    """Records the notes, and when the projects begin."""

    at_the_projects: asyncio.Event = field(default_factory=asyncio.Event)
    notes: list[str] = field(default_factory=list)

    def begin(self, phase: str, total: int | None = None) -> None:
        if phase == "Projects":
            self.at_the_projects.set()

    def step(self) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)


async def reconcile(
    archive: Archive,
    view: SvixView,
    since: timedelta = DAY,
    *,
    until: timedelta | None = None,
    repair: Repair = Repair.NOTHING,
    **more: Any,
) -> Report:
    """Run a reconciliation of the time from `since` ago to `until` ago."""
    now = datetime.now(UTC)
    report = Report(now - since, None if until is None else now - until)
    options = {"patience": 0.0, "look_again": False, **more}
    await Reconciliation(archive, view, report, Progress(), repair=repair, **options).run()
    return report


def found(report: Report) -> dict[Place, int]:
    """The number of events in each place, without those in Svix."""
    return {
        place: count
        for place, count in report.places.items()
        if count and place is not Place.IN_SVIX
    }


async def test_nothing_to_compare(archive: Archive, view: SvixView) -> None:
    report = await reconcile(archive, view)
    assert (report.everything_sent, report.events, report.complete) == (True, 0, True)


async def test_everything_was_sent(
    svix: Svix, rows: Rows, archive: Archive, view: SvixView
) -> None:
    """Svix is not asked one by one about events whose records and messages agree."""
    for number in range(600):
        svix.add_message(f"evt_{number}")
    rows.add(State.DELIVERED, *(f"evt_{number}" for number in range(600)))
    report = await reconcile(archive, view)
    assert (report.events, report.messages, report.delivered) == (600, 600, 600)
    assert report.everything_sent
    assert svix.paths == ["GET /api/v1/app/acme/msg"] * 3


STATES: dict[str, tuple[State | None, timedelta, timedelta | None, Place]] = {
    # the record's state, the time since it was written, the message's age, the event's place
    "missing": (State.DELIVERED, MINUTE, None, Place.MISSING),
    "waiting": (State.RELEASED, MINUTE, None, Place.WAITING),
    "overdue": (State.RELEASED, 2 * HOUR, None, Place.OVERDUE),
    "abandoned": (State.CLAIMED, MINUTE, None, Place.ABANDONED),
    "stuck": (State.CLAIMED, 2 * HOUR, None, Place.OVERDUE),
    "being_sent": (State.CLAIMED, timedelta(0), None, Place.BEING_SENT),
    "unsettled": (State.CLAIMED, MINUTE, MINUTE, Place.UNSETTLED),
    "unrecorded": (None, timedelta(0), MINUTE, Place.UNRECORDED),
    "old_waiting": (State.RELEASED, 10 * DAY, None, Place.OVERDUE),
    "old_unsettled": (State.RELEASED, 10 * DAY, 10 * DAY, Place.UNSETTLED),
}


@pytest.mark.parametrize("name", STATES)
async def test_each_state_is_found(
    svix: Svix, rows: Rows, archive: Archive, view: SvixView, name: str
) -> None:
    """Undelivered events of any age are found. A second run counts the same."""
    state, untouched, accepted, place = STATES[name]
    rows.add(State.DELIVERED, "evt_1")
    svix.add_message("evt_1")
    if state:
        rows.add(state, "evt_2", untouched=untouched)
    if accepted is not None:
        svix.add_message("evt_2", age=accepted)
    for _ in range(2):
        report = await reconcile(archive, view)
        assert found(report) == {place: 1}
        assert report.delivered == 1
        assert report.needs_operator == (place in {Place.MISSING, Place.OVERDUE})
        sent = place in {Place.UNSETTLED, Place.UNRECORDED, Place.BEING_SENT}
        assert report.everything_sent is sent
        assert report.examples[place] == [("acme", "evt_2")]


async def test_parked_events_count_as_unsent(
    svix: Svix, rows: Rows, archive: Archive, view: SvixView
) -> None:
    """This holds for rejected and for malformed events."""
    rows.add(State.RELEASED, "evt_1")
    await archive.park(letter("evt_1"))  # refused by Svix
    await archive.park(letter("evt_2", outcome="malformed", detail="the id is not a string"))
    await archive.park(letter(None, None, outcome="malformed", detail="not JSON"))
    report = await reconcile(archive, view)
    assert found(report) == {Place.PARKED: 3}
    assert (report.needs_operator, report.everything_sent) == (3, False)
    assert report.reasons == {"rejected": 1, "malformed": 2}
    assert not any("evt" in path for path in svix.paths), "Svix was asked for parked events"


async def test_two_letters_of_one_event_are_one_event(archive: Archive, view: SvixView) -> None:
    """An event that is published twice may be parked twice."""
    await archive.park(letter("evt_1"))
    await archive.park(replace(letter("evt_1"), id="f" * 64, reason="malformed"))
    report = await reconcile(archive, view)
    assert found(report) == {Place.PARKED: 1}
    assert report.reasons == {"rejected": 1, "malformed": 1}


async def test_a_letter_of_an_event_delivered_meanwhile_does_not_count(
    svix: Svix, rows: Rows, archive: Archive, view: SvixView
) -> None:
    svix.add_message("evt_1")
    rows.add(State.DELIVERED, "evt_1")
    rows.add(State.DELIVERED, "evt_2", untouched=10 * DAY)
    await archive.park(letter("evt_1"))
    await archive.park(letter("evt_2"))
    report = await reconcile(archive, view)
    assert (found(report), report.everything_sent) == ({}, True)


async def test_a_discarded_event_does_not_count_as_unsent(
    rows: Rows, archive: Archive, view: SvixView
) -> None:
    """It counts again if the event came again after the discard."""
    rows.add(State.RELEASED, "evt_1", untouched=MINUTE)
    for event_id in ("evt_1", "evt_2"):
        parked = letter(event_id)
        await archive.park(parked)
        await archive.discard_dead_letter(parked.id, "a test event")
    rows.add(State.RELEASED, "evt_2", untouched=-MINUTE)
    report = await reconcile(archive, view)
    assert found(report) == {Place.DISCARDED: 1, Place.WAITING: 1}
    assert report.needs_operator == 0


async def test_each_project_is_compared_on_its_own(
    svix: Svix, rows: Rows, archive: Archive, view: SvixView
) -> None:
    """Svix is asked only about projects with a record in the time compared."""
    for project in ("acme", "globex", "initech"):
        svix.add_message("evt_1", project=project)
    rows.add(State.DELIVERED, "evt_1", project="acme")
    rows.add(State.DELIVERED, "evt_1", project="globex")
    rows.add(State.DELIVERED, "evt_1", project="initech", untouched=2 * DAY)
    report = await reconcile(archive, view)
    assert (report.projects, report.events, report.everything_sent) == (2, 2, True)
    assert sorted(svix.paths) == ["GET /api/v1/app/acme/msg", "GET /api/v1/app/globex/msg"]
    await archive.park(letter("evt_2", "globex"))
    await archive.park(letter(None, None))
    report = await reconcile(archive, view, projects=["acme"])
    assert (report.projects, report.events, report.needs_operator) == (1, 1, 0)
    report = await reconcile(archive, view, projects=["acme", "globex"])
    assert (report.projects, report.events, report.needs_operator) == (2, 2, 1)


async def test_a_window_that_ended_before_now(
    svix: Svix, rows: Rows, archive: Archive, view: SvixView
) -> None:
    """Later deliveries are left to the next run. Undelivered events are always counted."""
    rows.add(State.DELIVERED, "within", untouched=2 * HOUR)
    svix.add_message("within", age=2 * HOUR)
    rows.add(State.DELIVERED, "later", untouched=MINUTE)
    rows.add(State.RELEASED, "waiting", untouched=MINUTE)
    svix.add_message("someone's", age=MINUTE)
    report = await reconcile(archive, view, 3 * HOUR, until=HOUR)
    assert (report.events, report.delivered, found(report)) == (2, 1, {Place.WAITING: 1})


async def test_an_undelivered_event_that_svix_accepted_after_the_window(
    svix: Svix, rows: Rows, archive: Archive, view: SvixView
) -> None:
    """Its delivery died before the settle. Svix's listing shows that the event is not waiting."""
    rows.add(State.CLAIMED, "evt_1", untouched=MINUTE)
    svix.add_message("evt_1", age=MINUTE)
    report = await reconcile(archive, view, 3 * HOUR, until=HOUR)
    assert (report.events, found(report)) == (1, {Place.UNSETTLED: 1})
    assert "GET /api/v1/app/acme/msg/evt_1" not in svix.paths


async def test_an_event_that_svix_accepted_before_the_time_compared_counts_as_delivered(
    svix: Svix, rows: Rows, archive: Archive, view: SvixView
) -> None:
    """The event was settled recently, but Svix accepted it long ago.

    So its message is not in the part of the listing that is read.
    """
    rows.add(State.DELIVERED, "evt_1", untouched=MINUTE, age=3 * DAY)
    svix.add_message("evt_1", age=3 * DAY)
    report = await reconcile(archive, view)
    assert (found(report), report.delivered) == ({}, 1)


# -- repairing


async def test_fix_settles_and_releases(
    svix: Svix, rows: Rows, archive: Archive, view: SvixView
) -> None:
    """A released event is not sent yet. This report and the next one say so."""
    rows.add(State.DELIVERED, "missing", untouched=MINUTE)
    rows.add(State.CLAIMED, "unsettled", untouched=MINUTE)
    rows.add(State.CLAIMED, "abandoned", untouched=MINUTE)
    stored = svix.add_message("unsettled", age=MINUTE)
    report = await reconcile(archive, view, repair=Repair.EVERYTHING)
    assert (report.settled, report.released, report.needs_operator, report.late) == (1, 1, 1, 1)
    assert not report.everything_sent

    settled = await archive.record(key_of("acme", "unsettled"))
    assert settled is not None
    assert (settled.state, settled.svix_message_id) == (State.DELIVERED, stored.id)
    assert settled.fanout_confirmed is False
    released = await archive.record(key_of("acme", "missing"))
    assert released is not None
    assert released.state is State.RELEASED

    report = await reconcile(archive, view, repair=Repair.EVERYTHING)
    assert found(report) == {Place.OVERDUE: 1, Place.ABANDONED: 1}
    assert (report.settled, report.released, report.needs_operator) == (0, 0, 1)


async def test_without_fix_nothing_changes(
    svix: Svix, rows: Rows, archive: Archive, view: SvixView
) -> None:
    rows.add(State.DELIVERED, "missing", untouched=MINUTE)
    rows.add(State.CLAIMED, "unsettled", untouched=MINUTE)
    svix.add_message("unsettled", age=MINUTE)
    for repair in (Repair.NOTHING, Repair.FANOUT):
        report = await reconcile(archive, view, repair=repair)
        assert found(report) == {Place.MISSING: 1, Place.UNSETTLED: 1}
        assert (report.settled, report.released) == (0, 0)


async def test_a_live_claim_is_left_alone(rows: Rows, archive: Archive, view: SvixView) -> None:
    """Its lease is in its record. A claim must not be released during a delivery."""
    rows.add(State.CLAIMED, "evt_1", untouched=timedelta(seconds=20))
    report = await reconcile(archive, view, repair=Repair.EVERYTHING)
    assert found(report) == {Place.BEING_SENT: 1}
    record = await archive.record(key_of("acme", "evt_1"))
    assert record is not None
    assert record.state is State.CLAIMED


# -- fan-out


@pytest.fixture
def customer() -> Iterator[Customer]:
    """A customer's endpoint."""
    with Customer() as customer:
        yield customer


@pytest.mark.parametrize("repair", Repair)
async def test_a_message_that_svix_stored_and_never_sent(
    svix: Svix, rows: Rows, archive: Archive, view: SvixView, customer: Customer, repair: Repair
) -> None:
    """If Svix dies after storing a message and before queueing it, the message is never sent."""
    endpoint = svix.add_endpoint(customer.url)
    svix.add_endpoint(customer.url).disabled = True
    stored = svix.add_message("inferred", age=2 * HOUR)
    svix.add_message("seen", age=2 * HOUR)
    rows.add(State.DELIVERED, "inferred", untouched=HOUR, age=2 * HOUR, confirmed=False)
    rows.add(State.DELIVERED, "seen", untouched=HOUR, age=2 * HOUR)
    report = await reconcile(archive, view, repair=repair)
    assert (report.never_sent_on, report.delivered) == (1, 2)
    assert report.examples[Fanout.NEVER_SENT_ON] == [("acme", "inferred")]
    repaired = repair is not Repair.NOTHING
    assert (report.resent, report.needs_operator) == (int(repaired), int(not repaired))
    if repaired:
        assert [arrival.message_id for arrival in customer.wait(1)] == [stored.id]
        svix.wait_for_attempt(stored, endpoint)
        again = await reconcile(archive, view, repair=repair)
        assert (again.never_sent_on, again.resent, again.everything_sent) == (0, 0, True)
    assert len(customer.arrived) == repaired


async def test_the_fanout_of_an_event_that_fix_settles_is_checked_too(
    svix: Svix, rows: Rows, archive: Archive, view: SvixView, customer: Customer
) -> None:
    svix.add_endpoint(customer.url)
    svix.add_message("evt_1", age=2 * HOUR)
    rows.add(State.RELEASED, "evt_1", untouched=2 * HOUR)
    report = await reconcile(archive, view, repair=Repair.EVERYTHING)
    assert (report.settled, report.never_sent_on, report.resent) == (1, 1, 1)
    customer.wait(1)
    assert report.everything_sent


async def test_an_unconfirmed_event_that_no_endpoint_takes_counts_as_sent(
    svix: Svix, rows: Rows, archive: Archive, view: SvixView
) -> None:
    svix.add_message("evt_1", age=2 * HOUR)
    rows.add(State.DELIVERED, "evt_1", untouched=HOUR, age=2 * HOUR, confirmed=False)
    report = await reconcile(archive, view)
    assert (report.never_sent_on, report.everything_sent) == (0, True)


async def test_every_message_is_checked_if_asked(
    svix: Svix, rows: Rows, archive: Archive, view: SvixView
) -> None:
    """An operator needs this check if Svix has lost its queue."""
    svix.add_endpoint("http://127.0.0.1:9/")
    svix.add_message("evt_1", age=2 * HOUR)
    rows.add(State.DELIVERED, "evt_1", untouched=2 * HOUR, age=2 * HOUR)
    assert (await reconcile(archive, view)).never_sent_on == 0
    report = await reconcile(archive, view, every_attempt=True)
    assert (report.never_sent_on, report.delivered) == (1, 1)


@pytest.mark.parametrize("attempted", [False, True])
async def test_a_young_message_is_checked_twice(
    svix: Svix,
    rows: Rows,
    archive: Archive,
    view: SvixView,
    customer: Customer,
    attempted: bool,  # noqa: FBT001 - a case
) -> None:
    """Svix may be about to send it. A second check after five minutes shows whether Svix did."""
    endpoint = svix.add_endpoint(customer.url)
    stored = svix.add_message("evt_1", age=MINUTE)
    rows.add(State.DELIVERED, "evt_1", untouched=MINUTE, confirmed=False)
    passed = timedelta(0)
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        nonlocal passed
        slept.append(seconds)
        passed += timedelta(seconds=seconds)
        if attempted:
            await view.resend("acme", stored.id, endpoint.id)
            svix.wait_for_attempt(stored, endpoint)

    report = await reconcile(
        archive,
        view,
        repair=Repair.EVERYTHING,
        look_again=True,
        now=lambda: datetime.now(UTC) + passed,
        sleep=sleep,
    )
    assert [round(seconds / 10) for seconds in slept] == [30]
    assert (report.never_sent_on, report.resent) == ((0, 0) if attempted else (1, 1))
    customer.wait(1)


# -- what fails


class Faulty:
    """An archive whose first reads fail, or take `delay` seconds. It counts its reads."""

    def __init__(self, archive: Archive, failures: int = 0, delay: float = 0.0) -> None:
        self._archive = archive
        self.failures = failures
        self.delay = delay
        self.at_once = self.most_at_once = 0
        self.reads = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._archive, name)

    async def record(self, key: str) -> Record | None:
        self.reads += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(self.delay)
        self.at_once -= 1
        if self.failures > 0:
            self.failures -= 1
            raise LedgerUnavailable("503")
        return await self._archive.record(key)

    async def undelivered(self) -> AsyncIterator[Record]:
        async for record in self._archive.undelivered():
            self.reads += 1
            yield record

    async def touched_since(self, since: datetime) -> AsyncIterator[Record]:
        async for record in self._archive.touched_since(since):
            self.reads += 1
            yield record


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the back-offs milliseconds."""
    monkeypatch.setattr(module, "_FIRST_BACK_OFF", 0.001)


async def test_a_ledger_that_fails_for_a_moment_is_read_again(
    rows: Rows, archive: Archive, view: SvixView, hurried: None
) -> None:
    rows.add(State.RELEASED, "evt_1")
    report = await reconcile(Faulty(archive, failures=4), view, patience=10.0)
    assert (found(report), report.complete) == ({Place.WAITING: 1}, True)


async def test_a_slow_ledger(rows: Rows, archive: Archive, view: SvixView) -> None:
    """At most 16 events are checked at once."""
    rows.add(State.RELEASED, *(f"evt_{n}" for n in range(100)))
    slow = Faulty(archive, delay=0.02)
    report = await reconcile(slow, view)
    assert (found(report), slow.most_at_once) == ({Place.WAITING: 100}, 16)


async def test_if_the_ledger_keeps_failing_the_report_is_incomplete(
    rows: Rows, archive: Archive, view: SvixView
) -> None:
    rows.add(State.RELEASED, *(f"evt_{n}" for n in range(40)))
    report = await reconcile(Faulty(archive, failures=1000), view)
    assert (report.failure, report.complete) == ("the ledger: 503", False)
    assert (report.everything_sent, report.unchecked) == (False, 40)


async def test_if_svix_keeps_refusing_the_unfinished_projects_are_named(
    svix: Svix, rows: Rows, archive: Archive, view: SvixView
) -> None:
    """The projects that were not compared are named. The report has what the ledger says."""
    for project in ("acme", "globex"):
        rows.add(State.DELIVERED, "evt_1", project=project)
        rows.add(State.RELEASED, "evt_2", project=project)
    await archive.park(letter(None, None))
    svix.inject("status", status=429)
    report = await reconcile(archive, view)
    assert "its rate limit is used up" in str(report.failure)
    assert sorted(report.unfinished) == ["acme", "globex"]
    assert found(report) == {Place.WAITING: 2, Place.PARKED: 1}
    assert (report.unchecked, report.everything_sent) == (2, False)
    assert len(svix.paths) == 1, "Svix is called again although it refuses"


async def test_if_svix_fails_for_one_project_the_finished_ones_stay_complete(
    svix: Svix, rows: Rows, archive: Archive, view: SvixView
) -> None:
    """The projects that were compared before stay complete."""
    for number in range(8):
        rows.add(State.DELIVERED, "evt_1", project=f"p{number}")
        svix.add_message("evt_1", project=f"p{number}")
    svix.inject("status", status=503, app="p3")
    report = await reconcile(archive, view)
    assert "p3" in report.unfinished
    assert report.delivered + report.unchecked == 8
    assert len(report.unfinished) == report.unchecked


async def test_an_interrupted_run_has_a_report(
    svix: Svix,
    rows: Rows,
    archive: Archive,
    view: SvixView,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run that is interrupted says how far it got, and leaves no file behind."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    (tmp_path / "temp").mkdir()
    rows.add(State.DELIVERED, "evt_1")
    svix.inject("hang")
    report = Report(datetime.now(UTC) - DAY)
    progress = Progress()
    reconciliation = Reconciliation(
        archive, view, report, progress, repair=Repair.NOTHING, patience=0, look_again=False
    )
    running = asyncio.create_task(reconciliation.run())
    await progress.at_the_projects.wait()
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert (report.events, report.unchecked, report.unfinished) == (1, 1, ["acme"])
    assert (report.complete, report.failure) == (False, "not finished")
    assert list((tmp_path / "temp").iterdir()) == []


# -- at size

MANY = 20_000


async def test_a_day_with_twenty_thousand_events(
    svix: Svix, rows: Rows, archive: Archive, view: SvixView
) -> None:
    """It reads only the records of the day, and finds every problem among them."""
    names = [f"evt_{number}" for number in range(MANY)]
    for number, name in enumerate(names):
        project = f"p{number % 7}"
        if number % 1000:
            svix.add_message(name, project=project)
    for number in range(7):
        rows.add(State.DELIVERED, *names[number::7], project=f"p{number}")
    rows.add(State.DELIVERED, *(f"old_{number}" for number in range(5_000)), untouched=2 * DAY)
    rows.add(State.RELEASED, *(f"old_waiting_{number}" for number in range(10)), untouched=2 * DAY)
    counting = Faulty(archive)
    report = await reconcile(counting, view)
    assert (report.events, report.messages) == (MANY + 10, MANY - 20)
    assert found(report) == {Place.MISSING: 20, Place.OVERDUE: 10}
    assert report.complete
    assert counting.reads <= 1.1 * MANY
    # Messages come in pages of 250. Svix is asked once about each event that is not in its list.
    assert len(svix.paths) < MANY / 250 + 7 * 2 + 30 + 1
