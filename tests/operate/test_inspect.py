"""`python -m relay inspect`, as a real process, with either ledger and the Svix simulator."""

import functools
import json
import subprocess
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.function import JSON, TOKEN, Svix, event, function, wrapped
from tests.operate.conftest import Command

Inspect = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def inspect(relay: Command) -> Inspect:
    """Runs the command for the event evt_1."""
    return functools.partial(relay, "inspect", "evt_1", "--project", "acme")


def deliver(svix: Svix, ledger: dict[str, str], *bodies: bytes) -> None:
    """Push these through the real function."""
    with function(svix.url, **ledger) as running:
        for body in bodies:
            httpx.post(running.notifications, content=body, headers=JSON, timeout=30)


def place(run: subprocess.CompletedProcess[str]) -> Any:
    """What `--json` says."""
    return json.loads(run.stdout)["place"]


def test_an_event_that_never_came(inspect: Inspect) -> None:
    run = inspect("--json")
    assert (run.returncode, place(run)) == (1, "never_seen"), run.stderr


def test_an_event_at_the_customers_endpoints(
    svix: Svix, ledger: dict[str, str], inspect: Inspect
) -> None:
    body = json.dumps(event("evt_1", data={"secret": "hush-1"})).encode()
    deliver(svix, ledger, wrapped(body, "1"))
    run = inspect("--json")
    assert (run.returncode, place(run)) == (0, "in_svix"), run.stderr
    url = "https://customer.example/hook?key=hush-2"
    svix.control.endpoints("acme", [{"id": "ep_1", "url": url}])
    assert place(inspect("--json")) == "delivered"
    failing = {"status": 2, "code": 503, "nextAttempt": "2026-01-01T10:00:00Z"}
    svix.control.endpoints("acme", [{"id": "ep_1", "url": url, **failing}])
    run = inspect()
    assert run.returncode == 0
    for told in ("failing at a customer's endpoint", "HTTP 503", "customer.example/hook"):
        assert told in run.stdout
    assert "next retry 2026-01-01 10:00:00 UTC" in run.stdout
    assert "hush" not in run.stdout + run.stderr
    assert TOKEN not in run.stdout + run.stderr
    assert max(map(len, run.stdout.splitlines())) <= 80


def test_an_event_that_was_parked(svix: Svix, ledger: dict[str, str], inspect: Inspect) -> None:
    svix.control.inject("status", status=413, body="json")
    deliver(svix, ledger, wrapped(json.dumps(event("evt_1")).encode(), "1"))
    svix.control.clear_faults()
    run = inspect()
    assert run.returncode == 1, run.stderr
    assert "parked" in run.stdout
    assert "rejected: Svix: 413" in run.stdout


def test_an_event_that_svix_does_not_have_any_more(
    svix: Svix, ledger: dict[str, str], inspect: Inspect
) -> None:
    deliver(svix, ledger, wrapped(json.dumps(event("evt_1")).encode(), "1"))
    svix.control.reset()
    run = inspect("--json")
    assert (run.returncode, place(run)) == (1, "missing"), run.stderr


def test_svix_that_cannot_be_asked(svix: Svix, inspect: Inspect) -> None:
    run = inspect(SVIX_TOKEN="testsk_wrong")
    assert run.returncode == 3
    assert "check SVIX_TOKEN" in run.stdout
    assert "testsk_wrong" not in run.stdout + run.stderr


def test_settings_that_are_wrong(inspect: Inspect) -> None:
    run = inspect(SVIX_TOKEN="")
    assert run.returncode == 2
    assert "SVIX_TOKEN is missing" in run.stderr
