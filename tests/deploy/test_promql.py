"""The PromQL alerts, tested on synthetic series with Prometheus's own `promtool`.

Google reads PromQL like Prometheus 2.44. A metric's name is given as the label `__name__`, because
Debian's promtool (2.42) does not read the shorter form `{"name", ...}`. A log-based metric is a
delta: each minute has one value, the number of lines, and a minute without lines has a zero or no
value. These tests can't show how Google turns its metrics into series.

Sources: https://cloud.google.com/monitoring/promql,
https://prometheus.io/docs/prometheus/latest/configuration/unit_testing_rules/
"""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import pytest

from tests.function import ROOT

PUBLISHED = (
    'pubsub.googleapis.com/topic/send_message_operation_count", monitored_resource="pubsub_topic", '
    'topic_id="events'
)
DELIVERED = (
    'logging.googleapis.com/user/relay-deliveries", monitored_resource="cloud_run_revision", '
    'outcome="delivered'
)
DUPLICATE = DELIVERED.replace("delivered", "duplicate")
UNAVAILABLE = DELIVERED.replace("delivered", "unavailable")
COMPLETE = (
    'logging.googleapis.com/user/relay-reconciliations", '
    'monitored_resource="cloud_run_revision", complete="true'
)
CUT_OFF = COMPLETE.replace("true", "false")


@dataclass(frozen=True, slots=True)
class Case:
    """The counts of each minute in promtool's notation.

    The alert must not fire in the minutes `silent`, and must in the minutes `fires`.
    """

    alert: str
    series: dict[str, str]
    silent: tuple[int, ...]
    fires: tuple[int, ...] = ()


CASES = {
    "published and delivered": Case(
        "silence", {PUBLISHED: "5x100", DELIVERED: "5x100"}, silent=(5, 20, 60, 100)
    ),
    "nothing is delivered any more": Case(
        "silence", {PUBLISHED: "5x100", DELIVERED: "5x30 _x70"}, silent=(20, 44), fires=(48, 90)
    ),
    "nothing is delivered, and zeros are written": Case(
        "silence", {PUBLISHED: "5x100", DELIVERED: "5x30 0x70"}, silent=(44,), fires=(48, 90)
    ),
    "every push is nacked": Case(
        "silence", {PUBLISHED: "5x100", UNAVAILABLE: "5x100"}, silent=(9,), fires=(20, 90)
    ),
    "only duplicates": Case(
        "silence", {PUBLISHED: "5x100", DUPLICATE: "5x100"}, silent=(20, 90)
    ),
    "a quiet night": Case("silence", {PUBLISHED: "0x100", DELIVERED: "0x100"}, silent=(20, 90)),
    "one event alone, delivered within 5 minutes": Case(
        "silence", {PUBLISHED: "_x4 1 _x95", DELIVERED: "_x9 1 _x90"}, silent=(14, 16, 18, 20, 60)
    ),
    "one event alone, never delivered": Case(
        "silence", {PUBLISHED: "_x4 1 _x95"}, silent=(13, 60), fires=(18,)
    ),
    "a reconciliation each hour": Case(
        "no_reconciliation",
        {COMPLETE: "0x16 1 0x59 1 0x59 1 0x59 1 0x59 1 0x59 1 0x59"},
        silent=(15, 80, 100, 140, 200, 260, 320, 380),
    ),
    "the last reconciliation was three hours ago": Case(
        "no_reconciliation",
        {COMPLETE: "_x16 1 _x59 1 _x500"},
        silent=(80, 170, 250),
        fires=(260, 400),
    ),
    "every reconciliation is cut off": Case(
        "no_reconciliation",
        {COMPLETE: "_x16 1 _x500", CUT_OFF: "_x16 0 _x59 1 _x59 1 _x59 1 _x59 1 _x59"},
        silent=(100, 190),
        fires=(200, 300),
    ),
    "there was never a reconciliation": Case(
        "no_reconciliation", {}, silent=(60, 85), fires=(95, 300)
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def promtool() -> str:
    """The path of promtool. Without it the test is skipped, or fails if promtool is required."""
    if (found := shutil.which(os.environ.get("PROMTOOL", "promtool"))) is None:
        lacking = "promtool is not installed: it is in Debian's package prometheus"
        if os.environ.get("REQUIRE_PROMTOOL") == "1":
            pytest.fail(f"REQUIRE_PROMTOOL=1, but {lacking}")
        pytest.skip(f"NOT TESTED: {lacking}")
    return found


def condition(alert: str) -> dict[str, Any]:
    """The PromQL condition of a policy."""
    text = (ROOT / "deploy" / "alerts" / f"{alert}.json").read_text()
    policy = json.loads(Template(text).safe_substitute(FUNCTION="relay", TOPIC="events"))
    (found,) = policy["conditions"]
    promql: dict[str, Any] = found["conditionPrometheusQueryLanguage"]
    return promql


def run_promtool(promtool: str, folder: Path, case: Case) -> subprocess.CompletedProcess[str]:
    """Run promtool on a case. It reads YAML, and JSON is YAML."""
    promql = condition(case.alert)
    rule = {"alert": case.alert, "expr": promql["query"], "for": promql["duration"]}
    rules = {"groups": [{"name": "relay", "rules": [rule]}]}
    (folder / "rules.json").write_text(json.dumps(rules))
    series = [
        {"series": f'{{__name__="{name}"}}', "values": values}
        for name, values in case.series.items()
    ]
    expected: list[dict[str, Any]] = [
        {
            "eval_time": f"{minute}m",
            "alertname": case.alert,
            "exp_alerts": [{"exp_labels": {}}] if minute in case.fires else [],
        }
        for minute in (*case.silent, *case.fires)
    ]
    test = {"interval": "1m", "input_series": series, "alert_rule_test": expected}
    tests = {"rule_files": ["rules.json"], "evaluation_interval": "1m", "tests": [test]}
    (folder / "tests.json").write_text(json.dumps(tests))
    return subprocess.run(  # noqa: S603 - our own command
        [promtool, "test", "rules", "tests.json"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("name", CASES)
def test_an_alert_fires_when_it_should_and_not_before(
    promtool: str, tmp_path: Path, name: str
) -> None:
    ended = run_promtool(promtool, tmp_path, CASES[name])
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_promtool_fails_a_wrong_case(promtool: str, tmp_path: Path) -> None:
    """A case that is wrong on purpose shows that promtool reads the series and the rule."""
    case = Case("silence", {PUBLISHED: "5x100"}, silent=(60,))
    assert run_promtool(promtool, tmp_path, case).returncode == 1


def test_every_promql_alert_has_cases_of_both_kinds() -> None:
    files = (ROOT / "deploy" / "alerts").glob("*.json")
    promql = {path.stem for path in files if "PrometheusQueryLanguage" in path.read_text()}
    assert {case.alert for case in CASES.values() if case.fires} == promql
    assert {case.alert for case in CASES.values() if not case.fires} == promql
