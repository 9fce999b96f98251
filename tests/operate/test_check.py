"""`python -m relay check`: what is wrong, and what to do about it."""

import json
from pathlib import Path

import pytest

from tests.function import TOKEN, Svix
from tests.operate.conftest import Command


def test_all_is_well(relay: Command) -> None:
    run = relay("check")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "FAULT" not in run.stdout
    assert TOKEN not in run.stdout
    assert max(map(len, run.stdout.splitlines())) <= 80
    told = json.loads(relay("check", "--json").stdout)
    assert {check["subject"] for check in told["checks"]} == {"token", "ledger", "clock"}
    assert told["settings"]["lease"] == 90
    assert relay("dead-letters", "list").stdout == "0 dead letter(s)\n"


def test_a_token_that_svix_does_not_take(relay: Command) -> None:
    run = relay("check", SVIX_TOKEN="testsk_wrong")
    assert run.returncode == 3
    assert "check SVIX_TOKEN" in " ".join(run.stdout.split())


@pytest.mark.parametrize("ledger", ["sqlite"], indirect=True)
def test_a_ledger_that_cannot_be_written(relay: Command, tmp_path: Path) -> None:
    run = relay("check", LEDGER=f"sqlite:{tmp_path}")
    assert run.returncode == 3
    assert "FAULT  ledger" in run.stdout


def test_settings_that_are_wrong(relay: Command) -> None:
    run = relay("check", SVIX_TOKEN="", REQUEST_BUDGET_SECONDS="1")
    assert run.returncode == 2
    for name in ("SVIX_TOKEN", "REQUEST_BUDGET_SECONDS"):
        assert name in run.stderr


def test_svix_that_is_away(relay: Command, svix: Svix) -> None:
    svix.control.inject("status", status=500, body="json", method="GET")
    run = relay("check")
    assert run.returncode == 3
    assert "Svix answered 500" in run.stdout
