"""What deploy.sh derives from its options, and what it refuses, with a stand-in for gcloud."""

import pytest

from relay.config import Settings
from tests.deploy.script import Script
from tests.function import TOKEN


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--budget", "29"], "from 30 to 540"),
        (["--budget", "541"], "from 30 to 540"),
        (["--budget", "60.5"], "a whole number"),
        (["--budget", "060"], "a whole number"),
        (["--budget"], "its value is missing"),
        (["--concurrency", "0"], "from 1 to 1000"),
        (["--min-instances", "5"], "from 0 to 4"),
        (["--name", "A"], "2 to 19"),
        (["--topic", "goog-events"], "Google's"),
        (["--firestore-location", "Europe"], "eur3"),
        (["--svix-url", "http://svix.example"], "an https URL"),
        (["--svix-url", "https://svix.example;LEDGER=sqlite:/tmp/x"], "an https URL"),
        (["--memory", "512"], "a size"),
        (["--token", TOKEN[:3]], "There is no option --token"),
        (["deploy"], "is not an option"),
        # Combinations that can't work.
        (["--svix-rate", "11"], "a worker that pulls"),
        (["--svix-rate", "20", "--budget", "240"], "the last of 3,000 events needs 320 s"),
        (["--max-instances", "2"], "no room for the 3,000 events"),
        (["--concurrency", "700", "--max-instances", "4"], "no room for the 3,000 events"),
        (["--memory", "256Mi"], "too small for 800 requests: 445Mi or more"),
        (["--concurrency", "1000", "--memory", "476Mi"], "477Mi or more"),
    ],
)
def test_wrong_options_are_refused_before_gcloud_is_called(
    script: Script, options: list[str], said: str
) -> None:
    run = script.deploy(*options)
    assert run.returncode == 2
    assert said in run.stderr
    assert "--help" in run.stderr
    assert script.calls() == []


@pytest.mark.parametrize(
    ("options", "budget", "instances", "concurrency", "bodies"),
    [
        ([], 240, 4, 800, 64),
        (["--svix-rate", "50"], 240, 4, 800, 64),
        (["--svix-rate", "28"], 240, 4, 800, 64),
        (["--svix-rate", "27"], 243, 4, 800, 64),
        (["--svix-rate", "12"], 520, 4, 800, 64),
        (["--svix-rate", "1000"], 240, 5, 800, 64),
        (["--svix-rate", "50", "--budget", "140"], 140, 4, 800, 64),
        (["--concurrency", "1000"], 240, 3, 1000, 56),
        (["--max-instances", "3"], 240, 3, 1000, 56),
        (["--max-instances", "20"], 240, 20, 800, 64),
        (["--concurrency", "500", "--memory", "1Gi"], 240, 6, 500, 204),
        (["--concurrency", "1000", "--memory", "477Mi"], 240, 3, 1000, 48),
    ],
)
def test_missing_options_are_derived(
    script: Script, options: list[str], budget: int, instances: int, concurrency: int, bodies: int
) -> None:
    """There is room for 3,000 pushes, and time for twice as many at Svix's rate.

    The room for large bodies follows from --memory and --concurrency.
    """
    printed = script.deploy(*options, fail_at="services enable").stdout
    assert f"{instances} instances x {concurrency} requests" in printed
    assert f"a request waits up to {budget} s" in printed
    assert f": {bodies} MiB of large bodies" in printed
    assert instances * concurrency >= 3000


def test_the_derived_settings_are_deployed(script: Script) -> None:
    script.deploy("--svix-rate", "12", "--max-instances", "3", "--event-tags", "data.id,data.iccid")
    (deployed,) = script.calls("functions", "deploy")
    assert {"--concurrency=1000", "--max-instances=3", "--memory=512Mi"} <= set(deployed)
    (environment,) = (each for each in deployed if each.startswith("--set-env-vars=^;^"))
    settings = environment.removeprefix("--set-env-vars=^;^").split(";")
    assert {"REQUEST_BUDGET_SECONDS=520", "BODIES_MIB=56"} <= set(settings)
    assert "EVENT_TAGS=data.id,data.iccid" in settings


def test_a_run_without_svix_rate_asks_for_it(script: Script) -> None:
    ended = script.deploy(fail_at="services enable")
    assert "Give --svix-rate" in ended.stdout
    ended = script.deploy("--svix-rate", "50", fail_at="services enable")
    assert "Give --svix-rate" not in ended.stdout


def test_project_and_region_are_required(script: Script) -> None:
    assert "--project is missing" in script("--region", "europe-west1").stderr
    assert "--region is missing" in script("--project", "acme-relay").stderr


@pytest.mark.parametrize("budget", [30, 240, 540])
def test_the_deployed_time_limits_are_those_of_the_settings(script: Script, budget: int) -> None:
    script.deploy("--budget", str(budget))
    settings = Settings(svix_token=TOKEN, request_budget=budget)
    assert budget < settings.function_timeout < settings.ack_deadline <= 600
    (deployed,) = script.calls("functions", "deploy")
    assert f"--timeout={settings.function_timeout:g}s" in deployed
    created = script.calls("pubsub", "subscriptions", "create")
    assert len(created) == 2
    assert all(f"--ack-deadline={settings.ack_deadline:g}" in call for call in created)
    (job,) = script.calls("scheduler", "jobs", "create")
    assert f"--attempt-deadline={settings.function_timeout:g}s" in job
