"""The metrics match the function's real log lines, and alerts and dashboard read existing metrics.

relay/logs.py writes the lines from results. Google's published protobufs parse the files and refuse
unknown fields.
"""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.cloud.logging_v2.types import LogMetric
from google.cloud.monitoring_dashboard_v1.types import Dashboard
from google.cloud.monitoring_v3.types import AlertPolicy

from relay.envelope import Names, Source
from relay.logs import Log
from relay.operate.report import Report
from relay.operate.whereabouts import Place
from relay.outcome import PARKED_OUTCOMES, Outcome, Remark, Result
from tests.deploy.logging_query import extract, matches
from tests.function import ROOT

DEPLOY = ROOT / "deploy"
ALERTS = sorted((DEPLOY / "alerts").glob("*.json"))
METRICS = {path.stem: json.loads(path.read_text()) for path in (DEPLOY / "metrics").glob("*.json")}
POLICIES = {path.stem: json.loads(path.read_text()) for path in ALERTS}
DASHBOARD = DEPLOY / "dashboard.json"
PLACEHOLDERS = {"FUNCTION", "TOPIC", "SUBSCRIPTION", "DEAD_LETTER_SUBSCRIPTION"}
NACKED = {"rate_limited", "unavailable", "ledger_unavailable", "misconfigured", "incomplete"}
SVIX_STATUS = {"delivered": 202, "rate_limited": 429, "misconfigured": 401, "rejected": 413}

Entry = dict[str, Any]
Counted = Callable[..., list[Entry]]


def log_entry(line: str) -> Entry:
    """A log line of the function as an entry in Cloud Logging."""
    payload = json.loads(line)
    return {
        "resource": {"type": "cloud_run_revision", "labels": {"service_name": "relay"}},
        "severity": payload.pop("severity"),
        "jsonPayload": payload,
    }


@pytest.fixture
def entries(capsys: pytest.CaptureFixture[str]) -> list[Entry]:
    """The log entries of pushes: one for each outcome and each remark.

    A push whose outcome is parked has a dead letter.
    """
    log = Log("INFO", None)
    source = Source(pushed=True, published_at=datetime.now(UTC) - timedelta(seconds=2))
    results = [
        Result(
            outcome=outcome,
            svix_status=SVIX_STATUS.get(outcome),
            waited=1.5,
            dead_letter="08de" if outcome in PARKED_OUTCOMES else None,
        )
        for outcome in Outcome
    ]
    results.append(Result(outcome=Outcome.DELIVERED, remark=Remark.FANOUT_UNCONFIRMED))
    results.append(Result(outcome=Outcome.DUPLICATE, remark=Remark.PAYLOAD_CHANGED))
    for result in results:
        log.write(result, source, Names("evt_1", "user.created", "acme"), 2.0, {})
    return [log_entry(line) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture
def counted(entries: list[Entry]) -> Counted:
    """A function that returns the entries that a metric counts."""

    def by(name: str, service: str = "relay") -> list[Entry]:
        query = METRICS[name]["filter"].replace("${FUNCTION}", service)
        return [entry for entry in entries if matches(query, entry)]

    return by


def outcomes(entries: list[Entry]) -> list[str]:
    """The entries' outcomes."""
    return [entry["jsonPayload"]["outcome"] for entry in entries]


def test_every_delivery_is_counted_by_outcome_answer_and_remark(
    entries: list[Entry], counted: Counted
) -> None:
    assert counted("deliveries") == entries
    labels = METRICS["deliveries"]["labelExtractors"]
    labelled = [
        tuple(extract(labels[label], entry) for label in ("outcome", "svix_status", "remark"))
        for entry in entries
    ]
    assert labelled[: len(Outcome)] == [(each, SVIX_STATUS.get(each), None) for each in Outcome]
    assert labelled[len(Outcome) :] == [
        ("delivered", None, "fanout_unconfirmed"),
        ("duplicate", None, "payload_changed"),
    ]
    assert counted("deliveries", "another") == []


def test_only_delivered_events_have_a_lag(counted: Counted) -> None:
    assert set(outcomes(counted("lag"))) == {"delivered"}
    for entry in counted("lag"):
        assert 2000 <= extract(METRICS["lag"]["valueExtractor"], entry) < 60_000


def test_waiting_is_taken_from_requests_that_waited(entries: list[Entry], counted: Counted) -> None:
    waited = counted("waited")
    assert waited == [e for e in entries if e["jsonPayload"].get("remark") != "payload_changed"]
    values = [extract(METRICS["waited"]["valueExtractor"], entry) for entry in waited]
    assert set(values) == {1500, 0}


def test_parked_events_are_counted(counted: Counted) -> None:
    assert set(outcomes(counted("parked"))) == PARKED_OUTCOMES


@pytest.fixture
def reconciled(capsys: pytest.CaptureFixture[str]) -> Callable[[int], Entry]:
    """A function: the entry of a complete reconciliation that found this many parked events."""

    def line(parked: int) -> Entry:
        report = Report(since=datetime.now(UTC), failure=None)
        report.places[Place.PARKED] = parked
        Log("ERROR", None).reconciliation(report.as_log(), report.severity)
        return log_entry(capsys.readouterr().out)

    return line


def test_reconciliations_are_counted_by_whether_they_were_complete(
    reconciled: Callable[[int], Entry],
) -> None:
    entry = reconciled(2)
    for name in ("reconciliations", "needs_operator"):
        assert matches(METRICS[name]["filter"].replace("${FUNCTION}", "relay"), entry)
    extractor = METRICS["reconciliations"]["labelExtractors"]["complete"]
    assert extract(extractor, entry) is True
    assert extract(METRICS["needs_operator"]["valueExtractor"], entry) == 2
    assert not matches(METRICS["deliveries"]["filter"].replace("${FUNCTION}", "relay"), entry)


def test_the_alert_needs_operator_shows_the_number_of_events(
    reconciled: Callable[[int], Entry],
) -> None:
    (condition,) = POLICIES["needs_operator"]["conditions"]
    query = condition["conditionMatchedLog"]["filter"].replace("${FUNCTION}", "relay")
    fires = reconciled(2)
    assert matches(query, fires)
    assert not matches(query, reconciled(0))
    extractors = condition["conditionMatchedLog"]["labelExtractors"]
    assert extract(extractors["needs_operator"], fires) == 2
    assert "${log.extracted_label.needs_operator}" in text_of("needs_operator")


@pytest.mark.parametrize("remark", Remark)
def test_each_remark_has_an_alert(remark: Remark) -> None:
    (condition,) = POLICIES[remark]["conditions"]
    assert f'metric.labels.remark="{remark}"' in condition["conditionThreshold"]["filter"]


def test_the_alert_payload_changed_says_how_to_find_the_event(entries: list[Entry]) -> None:
    (query,) = re.findall(r'`(jsonPayload[^`]*"payload_changed")`', text_of("payload_changed"))
    (entry,) = (entry for entry in entries if matches(query, entry))
    for name, value in {"project": "acme", "event_id": "evt_1"}.items():
        assert f"`{name}`" in text_of("payload_changed")
        assert entry["jsonPayload"][name] == value


def test_the_counts_that_the_alerts_name_are_in_the_line(
    reconciled: Callable[[int], Entry],
) -> None:
    counts = reconciled(2)["jsonPayload"]["reconciliation"]
    for count in ("parked", "overdue", "missing", "never_sent_on", "resent"):
        assert f"`{count}`" in text_of("needs_operator")
        assert count in counts
    assert "`failure`" in text_of("no_reconciliation")


def test_the_files_begin_as_deploy_sh_expects() -> None:
    """It inserts its mark after an alert's first line, and into a metric's second line."""
    for path in (*ALERTS, DASHBOARD):
        assert path.read_text().startswith('{\n  "displayName"')
    for name in METRICS:
        text = (DEPLOY / "metrics" / f"{name}.json").read_text()
        assert text.startswith('{\n  "description": "')


def test_labels_are_declared_and_extracted() -> None:
    for metric in METRICS.values():
        declared = {label["key"] for label in metric["metricDescriptor"].get("labels", [])}
        assert declared == set(metric.get("labelExtractors", {}))
        is_distribution = metric["metricDescriptor"]["valueType"] == "DISTRIBUTION"
        assert is_distribution == ("valueExtractor" in metric)


@pytest.mark.parametrize("path", [*ALERTS, DASHBOARD], ids=lambda p: p.stem)
def test_every_metric_of_ours_that_is_read_exists(path: Path) -> None:
    text = path.read_text()
    read = set(re.findall(r"user/\$\{FUNCTION\}-(\w+)", text))
    assert {name.removesuffix("_sum") for name in read} <= set(METRICS)
    assert set(re.findall(r"\$\{(\w+)\}", text)) <= PLACEHOLDERS
    assert json.loads(text)["displayName"].startswith("${FUNCTION}")


def test_every_metric_of_ours_is_on_the_dashboard() -> None:
    shown = set(re.findall(r"user/\$\{FUNCTION\}-(\w+)", DASHBOARD.read_text()))
    assert {name.removesuffix("_sum") for name in shown} == set(METRICS)


@pytest.mark.parametrize("path", ALERTS, ids=lambda p: p.stem)
def test_google_can_read_an_alert(path: Path) -> None:
    """Google's own parser refuses unknown fields."""
    policy = AlertPolicy.from_json(path.read_text(), ignore_unknown_fields=False)
    assert policy.conditions


@pytest.mark.parametrize("name", METRICS)
def test_google_can_read_a_metric(name: str) -> None:
    text = (DEPLOY / "metrics" / f"{name}.json").read_text()
    assert LogMetric.from_json(text, ignore_unknown_fields=False).filter


def test_google_can_read_the_dashboard() -> None:
    dashboard = Dashboard.from_json(DASHBOARD.read_text(), ignore_unknown_fields=False)
    tiles = dashboard.mosaic_layout.tiles
    assert len(tiles) == 9
    area = {(x, y) for t in tiles for x in range(t.x_pos, t.x_pos + t.width)
            for y in range(t.y_pos, t.y_pos + t.height)}  # fmt: skip
    assert len(area) == sum(tile.width * tile.height for tile in tiles), "tiles overlap"


def text_of(alert: str) -> str:
    """The text that an alert shows to a person."""
    content: str = POLICIES[alert]["documentation"]["content"]
    return content


@pytest.mark.parametrize("alert", POLICIES)
def test_an_alert_says_what_to_look_at_first(alert: str) -> None:
    named = re.findall(r"`(?:python -m relay|\./deploy\.sh|reconcile)[^`]*`", text_of(alert))
    assert named


def test_the_runbook_has_a_section_for_each_alert() -> None:
    """A person who gets the alert searches the runbook for its title."""
    runbook = (ROOT / "docs" / "operating.md").read_text()
    for alert, policy in POLICIES.items():
        title = policy["displayName"].removeprefix("${FUNCTION}: ")
        assert f"\n### {title[0].upper()}{title[1:]} (`{alert}`)\n" in runbook


def test_the_error_alert_counts_and_explains_every_error_outcome() -> None:
    condition = POLICIES["errors"]["conditions"][0]["conditionThreshold"]
    counted = re.findall(r'"(\w+)"', condition["filter"].partition("one_of")[2])
    assert set(counted) == NACKED | {str(outcome) for outcome in PARKED_OUTCOMES}
    assert set(counted) | {"delivered", "duplicate", "in_progress"} == set(Outcome)
    assert all(f"`{outcome}`" in text_of("errors") for outcome in counted)


def test_the_dead_letter_alert_explains_each_outcome_that_parks() -> None:
    assert all(f"`{outcome}`" in text_of("dead_letters") for outcome in PARKED_OUTCOMES)


def test_misconfigured_may_be_svix_or_google() -> None:
    """The outcome covers both, and the alert's text says how to tell them apart."""
    text = text_of("misconfigured")
    assert all(word in text for word in ("svix_status", "redirect", "2xx", "roles"))
    assert all(text.count(status) == 1 for status in ("401", "402", "403", "404", "405"))


def test_the_limits_fit_a_wait_of_four_minutes() -> None:
    """A request may wait 240 s. No alert may fire for a backlog that drains in that time."""
    limits = {
        name: [c["conditionThreshold"]["thresholdValue"] for c in policy["conditions"]
               if "conditionThreshold" in c]
        for name, policy in POLICIES.items()
    }  # fmt: skip
    assert limits == {
        "dead_letters": [0, 0],
        "errors": [0.01],
        "fanout_unconfirmed": [0],
        "lag": [300_000],
        "misconfigured": [0],
        "needs_operator": [],
        "no_reconciliation": [],
        "oldest_unacked": [900],
        "payload_changed": [0],
        "silence": [],
    }
