"""The metrics read what the function really logs; alerts and dashboard read metrics there are."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.function import JSON, ROOT, event, function, simulator, wrapped

DEPLOY = ROOT / "deploy"
ALERTS = sorted((DEPLOY / "alerts").glob("*.json"))
METRICS = {path.stem: json.loads(path.read_text()) for path in (DEPLOY / "metrics").glob("*.json")}
PLACEHOLDERS = {
    "FUNCTION",
    "PROJECT",
    "TOPIC",
    "SUBSCRIPTION",
    "DEAD_LETTER_TOPIC",
    "DEAD_LETTER_SUBSCRIPTION",
}
TOKENS = re.compile(r'\s*(\(|\)|AND\b|OR\b|([\w.]+)(=|>|:)("[^"]*"|\*|\d+))')


def matches(query: str, entry: dict[str, Any]) -> bool:
    """Whether a log entry fits, in the part of Cloud Logging's language that the files use.

    Source: https://cloud.google.com/logging/docs/view/logging-query-language
    """
    words, at = [], 0
    while at < len(query.rstrip()):
        token = TOKENS.match(query, at)
        assert token, f"not understood: {query[at:]}"
        at = token.end()
        _, path, operator, text = token.groups()
        words.append(str(_holds(entry, path, operator, text)) if path else token[1].lower())
    return bool(eval(" ".join(words)))  # noqa: S307 - True, False, and, or, parentheses


def _holds(entry: dict[str, Any], path: str, operator: str, text: str) -> bool:
    value = extract(f"EXTRACT({path})", entry)
    if operator == ":":
        assert text == "*"
        return value is not None
    if operator == ">":
        return value is not None and value > int(text)
    return bool(str(value) == text.strip('"'))


def extract(extractor: str, entry: dict[str, Any]) -> Any:
    """What an extractor takes from a log entry."""
    taken = re.fullmatch(r"EXTRACT\(([\w.]+)\)", extractor)
    assert taken, extractor
    value: Any = entry
    for name in taken[1].split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Real lines of every kind, as Cloud Logging files them."""
    ledger = {"LEDGER": f"sqlite:{tmp_path_factory.mktemp('ledger') / 'ledger.db'}"}
    ledger["REQUEST_BUDGET_SECONDS"] = "25"
    time = {"publishTime": "2026-01-01T00:00:00Z"}

    def push(event_id: str) -> bytes:
        body = json.loads(wrapped(json.dumps(event(event_id)).encode(), event_id))
        body["message"] |= time
        return json.dumps(body).encode()

    with simulator() as svix, function(svix.url, **ledger) as running:

        def post(body: bytes) -> None:
            httpx.post(running.notifications, content=body, headers=JSON, timeout=60)

        post(push("evt_1"))
        post(push("evt_1"))
        post(wrapped(b"no event", "2"))
        for status, event_id in ((413, "evt_3"), (401, "evt_4")):
            svix.control.inject("status", status=status, body="json")
            post(push(event_id))
            svix.control.clear_faults()
        svix.control.inject("status", status=429, body="json", headers={"Retry-After": "60"})
        post(push("evt_5"))
        lines = running.lines()
    labels = {"service_name": "relay"}
    return [
        {
            "resource": {"type": "cloud_run_revision", "labels": labels},
            "severity": line.pop("severity"),
            "jsonPayload": line,
        }
        for line in lines
    ]


@pytest.fixture
def counted(entries: list[dict[str, Any]]) -> Callable[[str], list[dict[str, Any]]]:
    """The entries that a metric counts."""

    def by(name: str, service: str = "relay") -> list[dict[str, Any]]:
        query = METRICS[name]["filter"].replace("${FUNCTION}", service)
        return [entry for entry in entries if matches(query, entry)]

    return by


def test_every_delivery_is_counted_by_its_outcome(
    entries: list[dict[str, Any]], counted: Callable[..., list[dict[str, Any]]]
) -> None:
    outcomes = [
        "delivered",
        "duplicate",
        "malformed",
        "rejected",
        "misconfigured",
        "rate_limited",
    ]
    assert counted("deliveries") == entries
    labels = METRICS["deliveries"]["labelExtractors"]
    assert [extract(labels["outcome"], entry) for entry in entries] == outcomes
    statuses = [extract(labels["svix_status"], entry) for entry in entries]
    assert statuses == [202, None, None, 413, 401, 429]
    assert counted("deliveries", "another") == []


def test_lag_and_waiting_are_taken_from_the_deliveries(
    counted: Callable[..., list[dict[str, Any]]],
) -> None:
    (delivered,) = counted("lag")
    assert delivered["jsonPayload"]["outcome"] == "delivered"
    assert extract(METRICS["lag"]["valueExtractor"], delivered) > 0
    waited = [extract(METRICS["waited"]["valueExtractor"], entry) for entry in counted("waited")]
    assert waited
    assert all(isinstance(value, int) for value in waited)


def test_what_is_parked_is_counted(counted: Callable[..., list[dict[str, Any]]]) -> None:
    parked = [entry["jsonPayload"]["outcome"] for entry in counted("parked")]
    assert parked == ["malformed", "rejected"]


def test_labels_are_declared_and_extracted() -> None:
    for metric in METRICS.values():
        declared = {label["key"] for label in metric["metricDescriptor"].get("labels", [])}
        assert declared == set(metric.get("labelExtractors", {}))
        is_distribution = metric["metricDescriptor"]["valueType"] == "DISTRIBUTION"
        assert is_distribution == ("valueExtractor" in metric)


@pytest.mark.parametrize("path", [*ALERTS, DEPLOY / "dashboard.json"], ids=lambda p: p.stem)
def test_metrics_of_ours_that_are_read_exist(path: Path) -> None:
    text = path.read_text()
    assert set(re.findall(r"user/\$\{FUNCTION\}-(\w+)", text)) <= set(METRICS)
    assert set(re.findall(r"\$\{(\w+)\}", text)) <= PLACEHOLDERS
    assert json.loads(text)["displayName"].startswith("${FUNCTION}")


@pytest.mark.parametrize("path", ALERTS, ids=lambda p: p.stem)
def test_an_alert_says_what_it_means(path: Path) -> None:
    policy = json.loads(path.read_text())
    assert len(policy["documentation"]["content"]) > 80
    assert policy["conditions"]


def test_the_alerts_are_those_that_are_wanted() -> None:
    names = {"oldest_unacked", "dead_letters", "misconfigured", "errors", "lag", "silence"}
    assert {path.stem for path in ALERTS} == names
    limits = {
        path.stem: [
            next(iter(c.values()))["thresholdValue"]
            for c in ({k: v for k, v in x.items() if k == "conditionThreshold"} for x in policy)
            if c
        ]
        for path in ALERTS
        if (policy := json.loads(path.read_text())["conditions"])
    }
    assert limits["oldest_unacked"] == [300]
    assert limits["errors"] == [0.01]
    assert limits["lag"] == [60_000]
    assert set(limits["dead_letters"]) == {0}
    assert limits["misconfigured"] == [0]
