"""One line per delivery: what metrics and people read, and nothing of the event's inside."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from relay.envelope import Event, Source
from relay.ledger import key_of
from relay.logs import DeliveryLog
from relay.outcome import Outcome, Result

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def written(
    capsys: pytest.CaptureFixture[str],
    result: Result,
    *,
    source: Source | None = None,
    level: str = "INFO",
    headers: dict[str, str] | None = None,
) -> dict[str, Any] | None:
    """The line logged for an event with this result, parsed."""
    event = Event("evt_1", "user.created", "acme", {"data": "hunter2"}, "0" * 64, Source())
    log = DeliveryLog(level, "cloud-project")
    log.write(result, source or Source(), event, 0.1234, headers or {})
    out = capsys.readouterr().out
    assert out.count("\n") <= 1
    line: dict[str, Any] | None = json.loads(out) if out else None
    return line


def test_a_line_carries_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    """The names that the metrics are made of."""
    source = Source(
        pushed=True,
        message_id="77",
        subscription="projects/p/subscriptions/s",
        published_at=datetime.now(UTC) - timedelta(seconds=30),
        delivery_attempt=2,
    )
    result = Result(
        outcome=Outcome.DELIVERED,
        svix_status=202,
        svix_message_id="msg_1",
        attempts=2,
        waited=1.5,
    )
    line = written(
        capsys, result, source=source, headers={"traceparent": f"00-{TRACE}-{'1' * 16}-01"}
    )
    assert line is not None
    lag_ms = line.pop("lag_ms")
    assert 30_000 <= lag_ms < 60_000
    assert line == {
        "severity": "INFO",
        "message": "delivered user.created evt_1",
        "outcome": "delivered",
        "status": 200,
        "event_id": "evt_1",
        "event_type": "user.created",
        "project": "acme",
        "idempotency_key": key_of("acme", "evt_1"),
        "message_id": "77",
        "subscription": "projects/p/subscriptions/s",
        "delivery_attempt": 2,
        "attempts": 2,
        "svix_message_id": "msg_1",
        "svix_status": 202,
        "duration_ms": 123,
        "waited_ms": 1500,
        "logging.googleapis.com/trace": f"projects/cloud-project/traces/{TRACE}",
    }


@pytest.mark.parametrize(
    ("header", "value", "traced"),
    [
        ("traceparent", f"00-{TRACE}-{'1' * 16}-01", True),
        ("x-cloud-trace-context", f"{TRACE}/123;o=1", True),
        ("x-cloud-trace-context", TRACE, True),
        ("traceparent", f'00-{TRACE}"\n{{-1-01', False),
        ("x-cloud-trace-context", "../" + TRACE, False),
    ],
)
def test_a_trace_is_taken_from_either_header_if_it_is_one(
    capsys: pytest.CaptureFixture[str], header: str, value: str, *, traced: bool
) -> None:
    """Anything else is left out, not passed on."""
    line = written(capsys, Result(outcome=Outcome.DELIVERED), headers={header: value})
    assert line is not None
    assert ("logging.googleapis.com/trace" in line) is traced


def test_lines_below_the_level_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    """A busy production may want the exceptions only."""
    assert written(capsys, Result(outcome=Outcome.DELIVERED), level="WARNING") is None
    assert written(capsys, Result(outcome=Outcome.RATE_LIMITED), level="WARNING") is not None


def test_no_line_holds_any_of_the_payload(capsys: pytest.CaptureFixture[str]) -> None:
    """Names of the event only, whatever its outcome."""
    for outcome in Outcome:
        line = written(capsys, Result(outcome=outcome), level="DEBUG")
        assert "hunter2" not in json.dumps(line)


def test_only_what_was_delivered_now_has_a_lag(capsys: pytest.CaptureFixture[str]) -> None:
    """A duplicate's age is not the relay's slowness."""
    source = Source(pushed=True, published_at=datetime.now(UTC))
    line = written(capsys, Result(outcome=Outcome.DUPLICATE), source=source)
    assert line is not None
    assert "lag_ms" not in line
