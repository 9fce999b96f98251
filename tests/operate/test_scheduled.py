"""`POST /reconcile`: it reports, stays within its time, and does not disturb deliveries."""

import asyncio
import time
from datetime import timedelta

import pytest

from local.customer import Customer
from relay.config import Settings
from relay.ledger import Archive, LedgerMisconfigured, State
from relay.operate import scheduled
from relay.operate.report import Report
from relay.operate.scheduled import PacerTurns, reconcile
from relay.operate.svix import SvixUnavailable
from relay.outcome import Answer, Call, Verdict
from relay.pacing import Pacer, Waiter
from tests.operate.conftest import Relay, Rows, Svix, letter

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
TAKEN = Answer(Call.SEND, Verdict.ACCEPTED, 202, message_id="msg_1")
REFUSED = Answer(Call.SEND, Verdict.RATE_LIMITED, 429, retry_after=60)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow so many calls a second that no test has to wait."""
    monkeypatch.setattr(scheduled, "_CALLS_A_SECOND", 1000.0)


async def run(
    relay: Relay, archive: Archive, pacer: Pacer | None = None, seconds: float = 30
) -> Report:
    settings = Settings.from_environment(relay.settings)
    return await reconcile(settings, archive, pacer or Pacer(), seconds)


async def test_it_finds_everything_and_repairs_only_the_fanout(
    relay: Relay, svix: Svix, rows: Rows, archive: Archive
) -> None:
    """A person must decide about everything else."""
    rows.add(State.DELIVERED, "evt_1", "missing", "inferred", untouched=2 * HOUR)
    rows.add(State.DELIVERED, "later", untouched=MINUTE)
    rows.add(State.RELEASED, "waiting", untouched=MINUTE)
    rows.add(State.RELEASED, "overdue", untouched=10 * HOUR)
    rows.add(State.DELIVERED, "unconfirmed", untouched=2 * HOUR, confirmed=False)
    await archive.park(letter("parked"))
    with Customer() as customer:
        svix.add_endpoint(customer.url)
        for name in ("evt_1", "inferred", "unconfirmed"):
            svix.add_message(name, age=2 * HOUR)
        report = await run(relay, archive)
        assert len(customer.wait(1)) == 1
    counts = report.as_log()
    assert counts.pop("since") < counts.pop("until")  # type: ignore[operator] # both are text
    assert counts == {
        "events": 6,
        "delivered": 3,
        "waiting": 1,
        "parked": 1,
        "never_sent_on": 1,
        "resent": 1,
        "missing": 1,
        "overdue": 1,
        "needs_operator": 3,
        "unchecked": 0,
        "complete": True,
        "failure": None,
    }
    assert report.severity == "ERROR"
    assert (report.settled, report.released) == (0, 0)


async def test_without_problems_the_severity_is_info(relay: Relay, archive: Archive) -> None:
    report = await run(relay, archive)
    assert (report.severity, report.complete) == ("INFO", True)
    assert report.as_log()["needs_operator"] == 0


async def test_two_at_once_do_no_harm(
    relay: Relay, svix: Svix, rows: Rows, archive: Archive
) -> None:
    """Both may let Svix send a message again. The receiver recognises it by its id."""
    rows.add(State.DELIVERED, "evt_1", untouched=2 * HOUR, confirmed=False)
    rows.add(State.DELIVERED, "missing", untouched=2 * HOUR)
    with Customer() as customer:
        svix.add_endpoint(customer.url)
        svix.add_message("evt_1", age=2 * HOUR)
        reports = await asyncio.gather(run(relay, archive), run(relay, archive))
        customer.wait(1)
    assert [report.places for report in reports] == [reports[0].places] * 2
    assert len({arrival.message_id for arrival in customer.arrived}) == 1


async def test_at_its_time_limit_it_reports_what_it_has(
    relay: Relay, svix: Svix, rows: Rows, archive: Archive
) -> None:
    """The report says that it is incomplete."""
    rows.add(State.RELEASED, "waiting", untouched=MINUTE)
    for number in range(4):
        rows.add(State.DELIVERED, "evt_1", project=f"p{number}", untouched=2 * HOUR)
        svix.add_message("evt_1", project=f"p{number}", age=2 * HOUR)
    svix.inject("hang", app="p2")
    report = await run(relay, archive, seconds=2)
    assert report.failure == "the time limit of 2 s"
    assert report.as_log()["complete"] is False
    assert "p2" in report.unfinished
    assert report.delivered == 4 - len([each for each in report.unfinished if each != "acme"])


async def test_if_svix_refuses_all_the_time_the_report_is_incomplete(
    relay: Relay, svix: Svix, rows: Rows, archive: Archive
) -> None:
    rows.add(State.DELIVERED, "evt_1", untouched=2 * HOUR)
    svix.inject("status", status=429)
    report = await run(relay, archive, seconds=3)
    assert not report.complete
    assert report.unchecked == 1


async def test_a_missing_ledger_is_reported(relay: Relay, archive: Archive) -> None:
    class Missing:
        def __getattr__(self, name: str) -> object:
            raise LedgerMisconfigured("no such database")

    report = await run(relay, Missing())  # type: ignore[arg-type] # fails in every call
    assert report.failure == "the ledger: no such database"


# -- beside deliveries


def waiter(project: str, last_turn: float = 1e9) -> Waiter:
    return Waiter(project, f"{project} 1", time.monotonic(), last_turn)


async def close_the_gate(pacer: Pacer) -> None:
    """Let Svix refuse so often that no call is allowed."""
    for number in range(10):
        async with pacer.turn(Waiter("acme", f"evt_{number}", 0.0, 1e9)) as turn:
            turn.begin()
            turn.report(REFUSED)
        if pacer.must_wait(waiter("acme")):
            return
    raise AssertionError("the pacer still allows calls after ten refusals")


async def test_its_calls_go_through_the_pacer() -> None:
    """The pacer learns from their answers, as it does from a delivery's."""
    pacer = Pacer()
    async with PacerTurns(pacer, time.monotonic() + 60)() as report:
        assert pacer.state().in_flight == 1
        report(Answer(Call.ASK, Verdict.RATE_LIMITED, 429))
    assert pacer.state().in_flight == 0
    assert pacer.state().refused == 1


async def test_deliveries_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a delivery would have to wait, the reconciliation does not join the line."""
    monkeypatch.setattr(scheduled, "_POLL_SECONDS", 0.005)
    pacer = Pacer()
    await close_the_gate(pacer)
    asking = asyncio.create_task(PacerTurns(pacer, time.monotonic() + 60)().__aenter__())
    await asyncio.sleep(0.05)
    assert (asking.done(), pacer.state().waiting) == (False, 0)
    asking.cancel()


async def test_a_long_backlog_does_not_stop_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After five seconds it joins the line like a delivery."""
    monkeypatch.setattr(scheduled, "_GIVES_WAY_SECONDS", 0.02)
    monkeypatch.setattr(scheduled, "_POLL_SECONDS", 0.005)
    pacer = Pacer()
    await close_the_gate(pacer)
    turns = PacerTurns(pacer, time.monotonic() + 0.3)
    with pytest.raises(SvixUnavailable, match="no turn came in time"):
        await turns().__aenter__()
