"""`python -m relay inspect`: what it says about one event must be true."""

import re
from datetime import timedelta

import pytest

from local.customer import Customer
from relay.ledger import State
from tests.function import TOKEN
from tests.operate.conftest import SECRET, Relay, Rows, Svix, both_ledgers, letter

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def inspect(relay: Relay, status: int, event_id: str = "evt_1") -> str:
    """The output of the command, in one line."""
    result = relay("inspect", event_id, "--project", "acme")
    assert result.exit_code == status, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    for secret in (SECRET, TOKEN, "/hook", "key="):
        assert secret not in result.output
    return re.sub(r"\s+", " ", result.stdout)


@both_ledgers
def test_an_event_that_was_never_seen(relay: Relay) -> None:
    said = inspect(relay, 1)
    assert "evt_1 of acme: never seen here" in said
    assert "ask the publisher" in said


@both_ledgers
def test_an_event_that_was_parked_before_it_had_a_record(relay: Relay) -> None:
    """A malformed event with an id and a project must not count as "never seen"."""
    parked = letter("evt_1", outcome="malformed", detail="data is not an object")
    relay.park(parked)
    said = inspect(relay, 1)
    assert "evt_1 of acme: parked" in said
    assert "malformed: data is not an object" in said
    assert f"dead-letters replay {parked.id[:12]}" in said


def test_an_event_that_was_discarded(relay: Relay) -> None:
    relay.park(parked := letter("evt_1"))
    assert relay("dead-letters", "discard", parked.id, "--reason", "a test event").exit_code == 0
    said = inspect(relay, 1)
    assert "discarded by an operator" in said
    assert "a test event" in said


def test_an_event_that_waits_for_its_redelivery(relay: Relay, rows: Rows) -> None:
    rows.add(State.RELEASED, "evt_1", untouched=5 * MINUTE, attempts=3)
    said = inspect(relay, 1)
    assert "not sent yet: it waits for its redelivery" in said
    assert "(5 min)" in said
    assert "claimed 3 times" in said
    assert "Pub/Sub redelivers it by" in said


def test_an_event_that_is_never_redelivered(relay: Relay, rows: Rows) -> None:
    """After three days and 100 attempts it must not say that Pub/Sub will redeliver the event."""
    rows.add(State.RELEASED, "evt_1", untouched=3 * DAY, attempts=100)
    said = inspect(relay, 1)
    assert "no redelivery has come" in said
    assert "(3 days)" in said
    assert "claimed 100 times" in said
    assert "redelivers it" not in said
    for advice in ("--redrive", "seek", "publish the event again"):
        assert advice in said
    rows.add(State.RELEASED, "evt_2", untouched=40 * DAY)
    said = inspect(relay, 1, "evt_2")
    assert "publish the event again" in said
    assert "redrive" not in said


def test_an_event_that_is_being_sent(relay: Relay, rows: Rows) -> None:
    """The lease is that of the record, whatever the operator's settings are."""
    rows.add(State.CLAIMED, "evt_1", untouched=timedelta(seconds=20))
    rows.add(State.CLAIMED, "evt_2", untouched=timedelta(seconds=40))
    for budget in ("30", "540"):
        place = relay.json(
            "inspect", "evt_1", "--project", "acme", status=1, REQUEST_BUDGET_SECONDS=budget
        )["place"]
        assert place == "being_sent"
        place = relay.json(
            "inspect", "evt_2", "--project", "acme", status=1, REQUEST_BUDGET_SECONDS=budget
        )["place"]
        assert place == "abandoned"


def test_an_event_that_svix_lost(relay: Relay, rows: Rows) -> None:
    rows.add(State.DELIVERED, "evt_1", untouched=HOUR)
    said = inspect(relay, 1)
    assert "recorded as delivered, but Svix does not have it" in said
    assert "python -m relay reconcile --since 3h --project acme --fix" in said


@pytest.mark.parametrize(
    ("untouched", "next_step"),
    [(MINUTE, "Pub/Sub redelivers it by"), (2 * HOUR, "reconcile --since")],
)
def test_an_event_that_is_not_recorded_as_delivered(
    relay: Relay, rows: Rows, svix: Svix, untouched: timedelta, next_step: str
) -> None:
    rows.add(State.RELEASED, "evt_1", untouched=untouched)
    svix.add_message("evt_1", age=untouched)
    said = inspect(relay, 0)
    assert "in Svix, but not recorded as delivered" in said
    assert next_step in said


def test_an_event_whose_record_has_expired(relay: Relay, svix: Svix) -> None:
    """It must not say that the next redelivery will record the event."""
    svix.add_message("evt_1", age=60 * DAY)
    said = inspect(relay, 0)
    assert "in Svix, without a record here" in said
    assert "redelivery" not in said


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (None, "endpoint none"),
        ({"disabled": True}, "not tried: it is disabled"),
        ({"event_types": frozenset({"other"})}, "not tried: it wants other event types"),
        ({"channels": frozenset({"other"})}, "not tried: it wants other channels"),
    ],
)
def test_an_event_that_no_endpoint_takes(
    relay: Relay, rows: Rows, svix: Svix, changes: dict[str, object] | None, why: str
) -> None:
    """It must not say that the event is on its way to an endpoint."""
    rows.add(State.DELIVERED, "evt_1")
    svix.add_message("evt_1")
    if changes is not None:
        endpoint = svix.add_endpoint("https://customer.example/hook?key=1")
        for name, value in changes.items():
            setattr(endpoint, name, value)
    said = inspect(relay, 0)
    assert "in Svix; none of the customer's endpoints takes it" in said
    assert why in said


def test_an_event_at_the_customers_endpoints(relay: Relay, rows: Rows, svix: Svix) -> None:
    """An endpoint is shown by its host and id, because a path is often a secret."""
    rows.add(State.DELIVERED, "evt_1")
    stored = svix.add_message("evt_1", age=MINUTE)
    with Customer() as good, Customer(answer=503) as bad:
        endpoint = svix.add_endpoint(f"{good.url}/hook?key=1")
        assert "on its way to the customer's endpoints" in inspect(relay, 0)
        svix.send_on(stored, endpoint)
        said = inspect(relay, 0)
        assert "evt_1 of acme: delivered to the customer's endpoints" in said
        assert "127.0.0.1 (ep_0) delivered: HTTP 204, attempt 1 at" in said
        svix.send_on(stored, svix.add_endpoint(f"{bad.url}/hook?key=1"))
        said = inspect(relay, 0)
        assert "in Svix; failing at a customer's endpoint" in said
        assert "failed so far: HTTP 503, attempt 1 at" in said
        assert "Svix tries again" in said


def test_an_event_that_svix_never_sent(relay: Relay, rows: Rows, svix: Svix) -> None:
    rows.add(State.DELIVERED, "evt_1", untouched=3 * HOUR, confirmed=False)
    svix.add_message("evt_1", age=3 * HOUR)
    svix.add_endpoint("https://customer.example/hook?key=1")
    said = inspect(relay, 1)
    assert "in Svix; Svix has never sent it on" in said
    assert "customer.example (ep_0) never tried, though it takes such events" in said
    assert "`python -m relay reconcile --since 5h --project acme --fix`" in said


def test_if_svix_cannot_be_asked_it_says_why(relay: Relay, rows: Rows) -> None:
    rows.add(State.DELIVERED, "evt_1")
    result = relay("inspect", "evt_1", "--project", "acme", SVIX_TOKEN="testsk_wrong")
    assert result.exit_code == 3
    assert "recorded as delivered; Svix could not be asked" in result.stdout
    assert "check SVIX_TOKEN" in result.stdout
    assert "testsk_wrong" not in result.output


@pytest.mark.parametrize("name", ["../../x", "..", "ä", "x y"])
def test_an_invalid_name_is_not_sent_to_svix(relay: Relay, svix: Svix, name: str) -> None:
    """Only a valid name may be put into a URL."""
    assert relay("inspect", name, "--project", name).exit_code == 1
    assert svix.paths == []


def test_an_impossible_name_is_refused(relay: Relay) -> None:
    assert relay("inspect", "a\nb", "--project", "acme").exit_code == 2
    assert relay("inspect", "", "--project", "acme").exit_code == 2


def test_json_says_the_same(relay: Relay, rows: Rows, svix: Svix) -> None:
    rows.add(State.RELEASED, "evt_1", untouched=2 * HOUR, attempts=7)
    relay.park(letter("evt_1"))
    said = relay.json("inspect", "evt_1", "--project", "acme", status=1)
    assert (said["place"], said["fanout"], said["remedies"]) == ("parked", None, ["replay"])
    assert (said["record"]["state"], said["record"]["attempts"]) == ("released", 7)
    assert [each["reason"] for each in said["dead_letters"]] == ["rejected"]
