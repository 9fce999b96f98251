"""Settings: read once, every fault at once, and times that obey their order."""

from pathlib import Path

import pytest

from relay.config import SETTLE_SECONDS, SVIX_CALL_SECONDS, ConfigurationError, Settings


def test_the_token_is_all_that_must_be_set() -> None:
    """Everything else has the default that production wants."""
    settings = Settings.from_environment({"SVIX_TOKEN": "testsk_x.eu"})
    assert settings == Settings(svix_token="testsk_x.eu")
    assert settings.ledger_path is None
    assert settings.create_applications
    assert settings.request_budget == 60


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
            "REQUEST_BUDGET_SECONDS": "25",
            "LOG_LEVEL": "warning",
        }
    ) == Settings(
        svix_token="t",
        svix_server_url="http://127.0.0.1:8071",
        ledger_path=Path("/ledger.db"),
        google_cloud_project="acme",
        firestore_database="relay",
        create_applications=False,
        request_budget=25,
        log_level="WARNING",
    )


def test_an_empty_variable_counts_as_unset() -> None:
    """`LEDGER=` in a deploy script must not choose anything."""
    settings = Settings.from_environment({"SVIX_TOKEN": "t", "LEDGER": "", "LOG_LEVEL": " "})
    assert settings == Settings(svix_token="t")


def test_all_faults_are_reported_in_one_message_that_names_each() -> None:
    """Whoever deploys mends them in one go."""
    with pytest.raises(ConfigurationError) as error:
        Settings.from_environment(
            {
                "SVIX_SERVER_URL": "api.svix.com",
                "LEDGER": "sqlite",
                "CREATE_APPLICATIONS": "yes",
                "REQUEST_BUDGET_SECONDS": "1e9",
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
        "LOG_LEVEL",
    ):
        assert name in message


@pytest.mark.parametrize("budget", ["24.9", "541", "-1", "nan", "inf", "a minute"])
def test_a_budget_outside_its_bounds_is_refused(budget: str) -> None:
    """Too short leaves no room to send, too long passes Pub/Sub's ack deadline."""
    with pytest.raises(ConfigurationError, match="REQUEST_BUDGET_SECONDS"):
        Settings.from_environment({"SVIX_TOKEN": "t", "REQUEST_BUDGET_SECONDS": budget})


@pytest.mark.parametrize("ledger", ["postgres:x", "sqlite:", "sqlite:/no/such/dir/x.db"])
def test_a_ledger_that_cannot_be_is_refused(ledger: str) -> None:
    """The default is never chosen in place of a misspelt one."""
    with pytest.raises(ConfigurationError, match="LEDGER"):
        Settings.from_environment({"SVIX_TOKEN": "t", "LEDGER": ledger})


@pytest.mark.parametrize("budget", [25, 60, 540])
def test_time_limits_keep_their_order(budget: float) -> None:
    """Call and settle fit the budget; each longer limit outlives the one inside it."""
    settings = Settings(svix_token="t", request_budget=budget)
    assert SVIX_CALL_SECONDS + SETTLE_SECONDS < settings.request_budget
    assert settings.request_budget < settings.function_timeout < settings.lease
    assert settings.lease < settings.ack_deadline <= 600


def test_the_token_is_in_no_representation() -> None:
    """A settings object in a traceback must not give the token away."""
    assert "secret" not in repr(Settings(svix_token="secret"))
