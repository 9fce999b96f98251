"""One line per delivery, for metrics and for people. It holds nothing of the payload."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from relay.envelope import Event, Names, Source
from relay.ledger import key_of
from relay.logs import Log
from relay.outcome import Outcome, Remark, Result
from relay.pacing import Pacer

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
    names = Names("evt_1", "user.created", "acme")
    source = source or Source(data=b"hunter2", attributes={"secret": "hunter2"})
    Log(level, "cloud-project").write(result, source, names, 0.1234, headers or {})
    out = capsys.readouterr().out
    assert out.count("\n") <= 1
    line: dict[str, Any] | None = json.loads(out) if out else None
    return line


def test_a_line_carries_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    """The log-based metrics read these fields by name."""
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
        remark=Remark.FANOUT_UNCONFIRMED,
        code="a_code",
        detail="for people",
    )
    line = written(
        capsys, result, source=source, headers={"traceparent": f"00-{TRACE}-{'1' * 16}-01"}
    )
    assert line is not None
    lag_ms = line.pop("lag_ms")
    assert 30_000 <= lag_ms < 60_000
    assert line == {
        "severity": "WARNING",
        "message": "delivered user.created evt_1",
        "outcome": "delivered",
        "status": 200,
        "remark": "fanout_unconfirmed",
        "code": "a_code",
        "detail": "for people",
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
        "logging.googleapis.com/spanId": "1" * 16,
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
def test_a_valid_trace_is_read_from_each_of_the_two_headers(
    capsys: pytest.CaptureFixture[str], header: str, value: str, *, traced: bool
) -> None:
    """An invalid trace is left out."""
    line = written(capsys, Result(outcome=Outcome.DELIVERED), headers={header: value})
    assert line is not None
    assert ("logging.googleapis.com/trace" in line) is traced


def test_the_publishers_trace_comes_before_the_requests(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """So the relay's log line is shown in the publisher's trace."""
    source = Source(traceparent=f"00-{'a' * 32}-{'b' * 16}-01")
    headers = {"traceparent": f"00-{TRACE}-{'1' * 16}-01"}
    line = written(capsys, Result(outcome=Outcome.DELIVERED), source=source, headers=headers)
    assert line is not None
    assert line["logging.googleapis.com/trace"].endswith("a" * 32)
    assert line["logging.googleapis.com/spanId"] == "b" * 16


def test_the_names_that_could_be_read_are_logged(capsys: pytest.CaptureFixture[str]) -> None:
    """A malformed event can be found by its id. Without a project it has no idempotency key."""
    result = Result(outcome=Outcome.MALFORMED)
    Log("INFO", None).write(result, Source(), Names("evt_1", None, None), 0.1, {})
    line = json.loads(capsys.readouterr().out)
    assert line["message"] == "malformed evt_1"
    assert line["event_id"] == "evt_1"
    assert "idempotency_key" not in line


@pytest.mark.parametrize(("level", "lines"), [("DEBUG", 2), ("INFO", 0)])
def test_steps_and_the_pacers_state_are_logged_at_debug(
    capsys: pytest.CaptureFixture[str], level: str, lines: int
) -> None:
    event = Event(
        id="evt_1",
        type="user.created",
        project="acme",
        text=b"hunter2",
        tags=("hunter2",),
        payload_sha256="0" * 64,
        source=Source(),
    )
    log = Log(level, None)
    log.step("claimed", event)
    log.pacer(Pacer().state())
    out = capsys.readouterr().out
    assert "hunter2" not in out
    written = [json.loads(line) for line in out.splitlines()]
    assert len(written) == lines
    assert {line["message"] for line in written} == ({"step", "pacer"} if lines else set())


def test_lines_below_the_level_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    """With many events, an operator may want only the lines about problems."""
    assert written(capsys, Result(outcome=Outcome.DELIVERED), level="WARNING") is None
    assert written(capsys, Result(outcome=Outcome.RATE_LIMITED), level="WARNING") is not None


def test_no_line_holds_any_of_the_payload(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the outcome, a line holds only the event's names."""
    for outcome in Outcome:
        line = written(capsys, Result(outcome=outcome), level="DEBUG")
        assert "hunter2" not in json.dumps(line)


def test_only_a_new_delivery_has_a_lag(capsys: pytest.CaptureFixture[str]) -> None:
    """The age of a duplicate says nothing about the relay's speed."""
    source = Source(pushed=True, published_at=datetime.now(UTC))
    line = written(capsys, Result(outcome=Outcome.DUPLICATE), source=source)
    assert line is not None
    assert "lag_ms" not in line
