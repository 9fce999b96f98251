"""`python -m relay reconcile`: its options, what it prints, and its exit status."""

from datetime import timedelta
from pathlib import Path

import pytest

from relay.ledger import State
from relay.operate.svix import Pace
from tests.function import TOKEN
from tests.operate.conftest import SECRET, Relay, Rows, Svix, both_ledgers, letter

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up at the first failure, because these tests are not about failures."""
    monkeypatch.setattr("relay.operate.commands.PATIENCE", 0.0)


def test_everything_was_sent(relay: Relay, rows: Rows, svix: Svix) -> None:
    rows.add(State.DELIVERED, "evt_1")
    svix.add_message("evt_1")
    result = relay("reconcile", "--since", "24h")
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("Everything was sent.\n")
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "Records" in result.stderr
    assert TOKEN not in result.output


@both_ledgers
def test_parked_events_count_as_unsent(relay: Relay) -> None:
    relay.park(
        letter("evt_1"),
        letter("evt_2", outcome="malformed", detail="no type"),
        letter(None, None, outcome="malformed", detail="not JSON"),
    )
    result = relay("reconcile", "--since", "24h")
    assert result.exit_code == 1, result.output
    for words in (
        "2 malformed, 1 rejected",
        "dead-letters list",
        "3 event(s) need an operator",
    ):
        assert words in result.stdout
    assert "Everything was sent" not in result.stdout
    assert SECRET not in result.output


def test_an_event_that_waits_counts_as_unsent(relay: Relay, rows: Rows) -> None:
    """It was released less than an hour ago. Each run reports it until it is sent."""
    rows.add(State.RELEASED, "evt_1", untouched=10 * MINUTE)
    result = relay("reconcile", "--since", "24h")
    assert result.exit_code == 1
    assert "1 event(s) wait for their redelivery: run this again in an hour." in result.stdout
    assert "evt_1 of acme" in result.stdout


def test_an_event_that_is_being_sent_is_no_problem(relay: Relay, rows: Rows) -> None:
    rows.add(State.CLAIMED, "evt_1")
    result = relay("reconcile", "--since", "24h")
    assert (result.exit_code, "Everything was sent." in result.stdout) == (0, True)


def test_fix_says_what_still_waits(relay: Relay, rows: Rows, svix: Svix) -> None:
    """It must not say "Everything was sent" while a released event waits."""
    rows.add(State.DELIVERED, "missing", untouched=MINUTE)
    rows.add(State.RELEASED, "unsettled", untouched=2 * HOUR)
    svix.add_message("unsettled", age=2 * HOUR)
    result = relay("reconcile", "--since", "24h", "--fix")
    assert result.exit_code == 1, result.output
    assert "Repaired: 1 recorded as delivered, 1 released." in result.stdout
    assert "1 event(s) need an operator" in result.stdout
    said = relay.json("reconcile", "--since", "24h", status=1)
    assert (said["found"]["overdue"], said["found"]["unsettled"]) == (1, 0)
    assert said["needs_operator"] == 1


def test_if_fix_repaired_everything_it_exits_with_0(relay: Relay, rows: Rows, svix: Svix) -> None:
    rows.add(State.RELEASED, "evt_1", untouched=2 * HOUR)
    svix.add_message("evt_1", age=2 * HOUR)
    assert relay("reconcile", "--since", "24h", "--fix").exit_code == 0
    record = relay.record("evt_1")
    assert record is not None
    assert record.state is State.DELIVERED


def test_if_svix_refuses_the_report_is_incomplete(relay: Relay, rows: Rows, svix: Svix) -> None:
    """It has what the ledger alone says, and it names the projects that were not compared."""
    rows.add(State.DELIVERED, "evt_1")
    svix.inject("status", status=429)
    result = relay("reconcile", "--since", "24h")
    assert result.exit_code == 3
    assert "Comparison not finished: acme." in result.stdout
    assert "Everything was sent" not in result.stdout
    said = relay.json("reconcile", "--since", "24h", status=3)
    assert (said["complete"], said["unchecked"]) == (False, 1)


def test_an_unsent_event_decides_the_exit_status_even_if_svix_was_not_asked(
    relay: Relay, rows: Rows
) -> None:
    rows.add(State.DELIVERED, "evt_1")
    relay.park(letter("evt_2"))
    result = relay("reconcile", "--since", "24h", SVIX_TOKEN="testsk_wrong")
    assert result.exit_code == 1
    assert "check SVIX_TOKEN" in result.stdout


def test_it_makes_two_calls_a_second_by_default(
    relay: Relay, rows: Rows, svix: Svix, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command shares Svix's limit with the function."""
    rates: list[float] = []

    class AsTold(Pace):
        def __init__(self, rate: float) -> None:
            rates.append(rate)
            super().__init__(10_000)

    monkeypatch.setattr("relay.operate.cli.Pace", AsTold)
    relay("reconcile", "--since", "24h")
    relay("reconcile", "--since", "24h", "--rate", "7")
    assert rates == [2, 7]


@pytest.mark.parametrize(
    "arguments",
    [[], ["--since", "soon"], ["--since", "24h", "--rate", "0"], ["--since", "1h", "--fix=1"]],
)
def test_wrong_usage_exits_with_2(relay: Relay, arguments: list[str]) -> None:
    assert relay("reconcile", *arguments).exit_code == 2


# -- a ledger that does not exist


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    "command",
    [
        ["reconcile", "--since", "24h"],
        ["inspect", "evt_1", "--project", "acme"],
        ["dead-letters", "list"],
        ["dead-letters", "replay", "--all"],
        ["dead-letters", "discard", "abc", "--reason", "x"],
        ["check"],
    ],
)
def test_a_typo_in_the_ledgers_path(
    relay: Relay,
    command: list[str],
    as_json: bool,  # noqa: FBT001 - a case
) -> None:
    """The command must not create an empty ledger and report that everything was sent."""
    path = f"{relay.settings['LEDGER']}x"
    result = relay(*command, *(["--json"] if as_json else []), LEDGER=path)
    assert result.exit_code == (3 if command == ["check"] else 2), result.output
    assert "does not exist" in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert not Path(path.removeprefix("sqlite:")).exists()


def test_without_google_credentials(relay: Relay) -> None:
    """The error is one sentence, not a traceback."""
    for extra in ([], ["--json"]):
        result = relay(
            "dead-letters",
            "list",
            *extra,
            LEDGER="firestore",
            GOOGLE_CLOUD_PROJECT="",
            FIRESTORE_EMULATOR_HOST=None,
            GOOGLE_APPLICATION_CREDENTIALS="/nowhere/key.json",
        )
        assert result.exit_code == 2, result.output
        assert len(result.output.strip().splitlines()) <= 3
        assert "Traceback" not in result.output


# -- Firestore


@pytest.mark.parametrize("ledger", ["firestore"], indirect=True)
def test_on_firestore(relay: Relay, svix: Svix) -> None:
    """It works with Firestore's indexes, clock and records: 500 events, and one of each kind."""
    names = [f"evt_{number}" for number in range(500)]
    relay.settle(State.DELIVERED, *names, "missing")
    relay.settle(State.DELIVERED, "inferred", confirmed=False)
    relay.settle(State.RELEASED, "waiting", "unsettled")
    for name in (*names, "unsettled", "inferred"):
        svix.add_message(name)
    said = relay.json("reconcile", "--since", "1h", "--rate", "1000", status=1)
    assert said["events"] == 504
    assert said["delivered"] == 501
    counts = {name: count for name, count in said["found"].items() if count}
    assert counts == {"missing": 1, "waiting": 1, "unsettled": 1}
    relay.json("reconcile", "--since", "1h", "--rate", "1000", "--fix", status=1)
    record = relay.record("unsettled")
    assert record is not None
    assert record.state is State.DELIVERED
    said = relay.json("reconcile", "--since", "1h", "--rate", "1000", status=1)
    counts = {name: count for name, count in said["found"].items() if count}
    assert counts == {"overdue": 1, "waiting": 1}
