"""The ledgers' time limits, each compared with what it must exceed."""

from datetime import timedelta

import pytest

from relay.config import ATTEMPT_SECONDS, CLAIM_SECONDS, SETTLE_SECONDS, Settings
from relay.ledger import (
    DEAD_LETTER_LIFETIME,
    LEASE_SECONDS,
    LEDGER_CALL_SECONDS,
    PARK_SECONDS,
    RECORD_LIFETIME,
    batches,
    key_of,
)

SUBSCRIPTION_RETENTION = timedelta(days=7)
DEAD_LETTER_RETENTION = timedelta(days=31)
"""The retention of the two subscriptions, as `deploy.sh` sets it. 31 days are the longest for which
Pub/Sub keeps a message (https://cloud.google.com/pubsub/quotas)."""


def test_an_attempt_allows_for_a_whole_call_to_the_ledger() -> None:
    """The claim and the settlement are one call each."""
    assert LEDGER_CALL_SECONDS == CLAIM_SECONDS == SETTLE_SECONDS


def test_a_call_to_firestore_leaves_its_caller_time_to_ask_again() -> None:
    """There is time for two calls: one is lost, and the next waits for a connection."""
    assert 2 * batches.CALL_SECONDS < LEDGER_CALL_SECONDS


def test_no_attempt_outlasts_its_lease() -> None:
    """Two workers must not call Svix for one event at the same time.

    The margin covers clock differences and delays.
    """
    assert LEASE_SECONDS == 30
    assert 1.5 * ATTEMPT_SECONDS <= LEASE_SECONDS


@pytest.mark.parametrize("budget", [30.0, 240.0, 540.0])
def test_the_lease_does_not_depend_on_the_budget(budget: float) -> None:
    """A crash delays its events by half a minute, however long requests may wait."""
    assert not hasattr(Settings("token", request_budget=budget), "lease")


@pytest.mark.parametrize("budget", [30.0, 240.0, 540.0])
def test_a_letter_is_stored_before_the_request_is_ended(budget: float) -> None:
    """There is time even if parking begins at the end of the budget."""
    settings = Settings("token", request_budget=budget)
    assert budget + PARK_SECONDS < settings.function_timeout


def test_a_record_outlives_every_message_that_can_come_back() -> None:
    """A message may wait in the subscription and then in the dead-letter subscription.

    The record lives a week longer.
    """
    slack = timedelta(days=7)
    assert SUBSCRIPTION_RETENTION + DEAD_LETTER_RETENTION + slack <= RECORD_LIFETIME


def test_a_dead_letter_outlives_its_record() -> None:
    """A letter can be replayed after its record has expired, because the replay asks Svix first."""
    assert DEAD_LETTER_LIFETIME > RECORD_LIFETIME


def test_every_event_has_a_key_of_its_own() -> None:
    """The key is also Svix's idempotency key, so its hash must never change."""
    assert key_of("acme", "evt_1") == (
        "a82d352942f706d6d917c76c4da0d0e0b6633d294ca6af603ef54af0b4c20e41"
    )
    assert len({key_of("a", "b.c"), key_of("a.b", "c"), key_of("b.c", "a")}) == 3
