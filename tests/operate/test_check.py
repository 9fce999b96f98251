"""`python -m relay check`: what is wrong, and what to do about it."""

from pathlib import Path

import pytest

from tests.function import TOKEN
from tests.operate.conftest import Relay, Svix, both_ledgers


@both_ledgers
def test_without_faults_it_exits_with_0(relay: Relay) -> None:
    result = relay("check")
    assert result.exit_code == 0, result.output
    assert "FAULT" not in result.stdout
    assert TOKEN not in result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    said = relay.json("check")
    assert {check["subject"] for check in said["checks"]} == {"token", "ledger", "clock"}
    assert said["settings"]["ack_deadline"] == 300
    assert relay.letters() == []


def test_a_token_that_svix_refuses_is_a_fault(relay: Relay) -> None:
    result = relay("check", SVIX_TOKEN="testsk_wrong")
    assert result.exit_code == 3
    assert "check SVIX_TOKEN" in " ".join(result.stdout.split())
    assert "testsk_wrong" not in result.output


def test_a_file_that_is_not_a_ledger_is_a_fault(relay: Relay, tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("not a database, and long enough for SQLite to see that" * 10)
    result = relay("check", LEDGER=f"sqlite:{other}")
    assert result.exit_code == 3
    assert "FAULT  ledger" in result.stdout


def test_all_wrong_settings_are_named(relay: Relay) -> None:
    result = relay("check", SVIX_TOKEN="", REQUEST_BUDGET_SECONDS="1")
    assert result.exit_code == 2
    for name in ("SVIX_TOKEN", "REQUEST_BUDGET_SECONDS"):
        assert name in result.stderr


def test_a_failing_svix_is_a_fault(
    relay: Relay, svix: Svix, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.operate.commands.CHECK_PATIENCE", 0.0)
    svix.inject("status", status=500)
    result = relay("check")
    assert result.exit_code == 3
    assert "Svix answers 500" in result.stdout
