"""Settings: every variable is read, all faults are reported at once, time limits are in order."""

from datetime import timedelta
from pathlib import Path

import pytest

from relay.config import (
    ATTEMPT_SECONDS,
    CLAIM_SECONDS,
    SETTLE_SECONDS,
    SVIX_CALL_SECONDS,
    ConfigurationError,
    Settings,
)
from relay.ledger import DEAD_LETTER_LIFETIME, LEASE_SECONDS, LEDGER_CALL_SECONDS, RECORD_LIFETIME


def test_the_token_is_all_that_must_be_set() -> None:
    """Every other setting has the default for production."""
    settings = Settings.from_environment({"SVIX_TOKEN": "testsk_x.eu"})
    assert settings == Settings(svix_token="testsk_x.eu")
    assert settings.ledger_path is None
    assert settings.create_applications
    assert settings.request_budget == 240
    assert settings.bodies_mib == 48
    assert settings.event_tags == ("data.id",)


def test_every_setting_is_read() -> None:
    """Each variable reaches its field."""
    assert Settings.from_environment(
        {
            "SVIX_TOKEN": "t",
            "SVIX_SERVER_URL": "http://127.0.0.1:8071",
            "LEDGER": "sqlite:/ledger.db",
            "GOOGLE_CLOUD_PROJECT": "acme",
            "FIRESTORE_DATABASE": "relay",
            "CREATE_APPLICATIONS": "False",
            "REQUEST_BUDGET_SECONDS": "30",
            "BODIES_MIB": "64",
            "EVENT_TAGS": "data.id, data.user.id",
            "LOG_LEVEL": "warning",
        }
    ) == Settings(
        svix_token="t",
        svix_server_url="http://127.0.0.1:8071",
        ledger_path=Path("/ledger.db"),
        google_cloud_project="acme",
        firestore_database="relay",
        create_applications=False,
        request_budget=30,
        bodies_mib=64,
        event_tags=("data.id", "data.user.id"),
        log_level="WARNING",
    )


def test_an_empty_variable_counts_as_unset() -> None:
    """`LEDGER=` in a deploy script must not select a ledger."""
    settings = Settings.from_environment({"SVIX_TOKEN": "t", "LEDGER": "", "LOG_LEVEL": " "})
    assert settings == Settings(svix_token="t")


def test_all_faults_are_reported_in_one_message_that_names_each() -> None:
    """A person who deploys can fix all of them at once."""
    with pytest.raises(ConfigurationError) as error:
        Settings.from_environment(
            {
                "SVIX_SERVER_URL": "api.svix.com",
                "LEDGER": "sqlite",
                "CREATE_APPLICATIONS": "yes",
                "REQUEST_BUDGET_SECONDS": "1e9",
                "BODIES_MIB": "16",
                "EVENT_TAGS": "data..id",
                "LOG_LEVEL": "LOUD",
            }
        )
    message = str(error.value)
    for name in (
        "SVIX_TOKEN",
        "SVIX_SERVER_URL",
        "LEDGER",
        "CREATE_APPLICATIONS",
        "REQUEST_BUDGET_SECONDS",
        "BODIES_MIB",
        "EVENT_TAGS",
        "LOG_LEVEL",
    ):
        assert name in message


@pytest.mark.parametrize("budget", ["29.9", "541", "-1", "nan", "inf", "a minute"])
def test_a_budget_outside_its_bounds_is_refused(budget: str) -> None:
    """A shorter budget leaves no time to send. A longer one exceeds Pub/Sub's ack deadline."""
    with pytest.raises(ConfigurationError, match="REQUEST_BUDGET_SECONDS"):
        Settings.from_environment({"SVIX_TOKEN": "t", "REQUEST_BUDGET_SECONDS": budget})


@pytest.mark.parametrize("ledger", ["postgres:x", "sqlite:", "sqlite:/no/such/dir/x.db"])
def test_an_invalid_ledger_is_refused(ledger: str) -> None:
    """The default must not replace a misspelt ledger."""
    with pytest.raises(ConfigurationError, match="LEDGER"):
        Settings.from_environment({"SVIX_TOKEN": "t", "LEDGER": ledger})


@pytest.mark.parametrize(
    "url",
    [
        "api.svix.com",
        "ftp://svix",
        "https://",
        "https://svix:0",
        "https://svix:65536",
        "https://svix:port",
        "https://[::1",
        "https://user:password@svix",
        "https://svix?x=1",
    ],
)
def test_a_url_that_cannot_be_called_is_refused(url: str) -> None:
    """It is refused at the start, not with the first event."""
    with pytest.raises(ConfigurationError, match="SVIX_SERVER_URL"):
        Settings.from_environment({"SVIX_TOKEN": "t", "SVIX_SERVER_URL": url})


@pytest.mark.parametrize("paths", ["a,b,c,d,e,f", ",", "data.", "a,,b"])
def test_empty_and_too_many_tag_paths_are_refused(paths: str) -> None:
    """Svix takes five tags on a message."""
    with pytest.raises(ConfigurationError, match="EVENT_TAGS"):
        Settings.from_environment({"SVIX_TOKEN": "t", "EVENT_TAGS": paths})


@pytest.mark.parametrize("budget", [30, 240, 540])
def test_time_limits_keep_their_order(budget: float) -> None:
    """Each time limit is shorter than the one around it, up to Pub/Sub's own of 600 s."""
    settings = Settings(svix_token="t", request_budget=budget)
    assert CLAIM_SECONDS + SVIX_CALL_SECONDS + SETTLE_SECONDS == ATTEMPT_SECONDS
    assert ATTEMPT_SECONDS < settings.request_budget
    assert settings.request_budget < settings.function_timeout < settings.ack_deadline <= 600


def test_an_attempt_cannot_outlast_its_lease_whatever_the_budget() -> None:
    """A claim's owner has settled or given up before another request may take the claim over."""
    assert LEASE_SECONDS > ATTEMPT_SECONDS
    assert LEDGER_CALL_SECONDS == CLAIM_SECONDS == SETTLE_SECONDS


def test_a_record_outlives_every_way_its_message_can_come_back() -> None:
    """A message may stay 7 days in the subscription and 31 days in the dead-letter subscription."""
    assert RECORD_LIFETIME > timedelta(days=7 + 31)


def test_a_dead_letter_outlives_its_record() -> None:
    """A parked event can be replayed after its record has expired: the replay asks Svix first."""
    assert DEAD_LETTER_LIFETIME > RECORD_LIFETIME


def test_the_token_is_in_no_representation() -> None:
    """A settings object in a traceback must not reveal the token."""
    assert "secret" not in repr(Settings(svix_token="secret"))
