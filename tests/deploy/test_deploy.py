"""deploy.sh with the real gcloud, against a server on loopback that stands in for Google's APIs.

These go through the real gcloud: a run that fails half-way, the run that completes it, a run that
changes nothing, a run that corrects everything that can differ, `--status`, the redrive, and
`--teardown`. The other states of a project and each change that fails are in test_steps.py, with a
stand-in for gcloud that only records its arguments.
"""

import base64
import copy
import io
import json
import os
import re
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import pytest

from relay.config import Settings
from tests.deploy.gcloud import isolated, require_gcloud, warm_gcloud
from tests.deploy.google import NUMBER, SERVICES, Google, google
from tests.function import ROOT, TOKEN

Run = subprocess.CompletedProcess[str]
Deploy = Callable[..., Run]

pytestmark = pytest.mark.time_limit(300)  # the deployment, on a busy machine

HOME = "projects/acme-relay"
REGION = f"{HOME}/locations/europe-west1"
DATABASE = f"{HOME}/databases/(default)"
FUNCTION = f"{REGION}/functions/webhook-relay"
JOB = f"{REGION}/jobs/webhook-relay-reconcile"
PUSH_SUBSCRIPTION = f"{HOME}/subscriptions/webhook-relay-push"
DEAD_SUBSCRIPTION = f"{HOME}/subscriptions/webhook-relay-dead-letters"
ACCOUNT = "webhook-relay@acme-relay.iam.gserviceaccount.com"
PUSH = "webhook-relay-push@acme-relay.iam.gserviceaccount.com"
RECONCILE = "webhook-relay-reconcile@acme-relay.iam.gserviceaccount.com"
URL = "https://webhook-relay-abc123-ew.a.run.app"


@dataclass(frozen=True, slots=True)
class Deployed:
    """A project after three deployments: one failed half-way, one completed it, one repeated it."""

    google: Google
    deploy: Deploy
    failed: Run
    completed: Run
    repeated: Run
    changed_by_repeating: list[str]
    state: tuple[dict[str, Any], dict[str, Any]]
    """The resources and policies after them."""


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """The deployments, which all tests of the module share. `cloud` resets their state."""
    require_gcloud()
    folder = tmp_path_factory.mktemp("gcloud")
    with google() as running:
        environment = {
            **isolated(folder),
            "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
            "CLOUDSDK_CORE_PROJECT": "acme-relay",
        }
        for service in SERVICES:
            environment[f"CLOUDSDK_API_ENDPOINT_OVERRIDES_{service}"] = f"{running.url}/"
        with warm_gcloud(folder, environment) as path:
            environment["PATH"] = f"{path}:{os.environ['PATH']}"

            def deploy(*options: str, said: str = f"{TOKEN}\n") -> Run:
                ended = run(*options, said=said, environment=environment)
                assert running.unknown == []
                return ended

            running.failures.append(f"POST /v1/{REGION}/jobs")
            failed = deploy("--token-stdin")
            running.failures.clear()
            completed = deploy("--token-stdin")
            before = len(running.changes)
            repeated = deploy("--token-stdin")
            changed = [str(request) for request in running.changes[before:]]
            state = copy.deepcopy((running.resources, running.policies))
            yield Deployed(running, deploy, failed, completed, repeated, changed, state)


@pytest.fixture
def cloud(deployed: Deployed) -> Google:
    """Google's state after the deployments."""
    deployed.google.resources, deployed.google.policies = copy.deepcopy(deployed.state)
    deployed.google.requests.clear()
    return deployed.google


def run(*options: str, said: str, environment: dict[str, str]) -> Run:
    """Run deploy.sh for the project."""
    ended = subprocess.run(  # noqa: S603 - our own command
        [ROOT / "deploy.sh", "--project", "acme-relay", "--region", "europe-west1", *options],
        env=os.environ | environment,
        input=said,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert TOKEN not in ended.stdout + ended.stderr
    return ended


def test_a_failure_names_the_step_and_what_to_do(deployed: Deployed) -> None:
    assert deployed.failed.returncode == 1
    assert 'Failed at the step "Hourly reconciliation"' in deployed.failed.stderr
    assert "does not have permission" in deployed.failed.stderr
    assert "needs roles/owner" in deployed.failed.stderr


def test_the_next_run_completes_the_deployment_and_one_more_changes_nothing(
    deployed: Deployed,
) -> None:
    assert deployed.completed.returncode == 0, deployed.completed.stderr
    assert "created the job webhook-relay-reconcile\n" in deployed.completed.stdout
    assert "   created the topic" not in deployed.completed.stdout
    assert deployed.repeated.returncode == 0, deployed.repeated.stderr
    assert deployed.changed_by_repeating == []
    assert deployed.repeated.stdout.endswith("Done: nothing had to be changed.\n")


def test_indexes_that_are_being_built_are_reported_and_not_requested_again(
    deployed: Deployed,
) -> None:
    assert "   being built: events composite state shard touched_at\n" in deployed.repeated.stdout
    assert "   being built: dead_letters ttl expires_at\n" in deployed.repeated.stdout


def test_the_token_is_stored_once_and_only_as_the_secret(deployed: Deployed) -> None:
    resources, _ = deployed.state
    (version,) = resources[f"{HOME}/secrets/svix-token"]["versions"]
    assert base64.b64decode(version["data"]).decode() == TOKEN
    assert not any(TOKEN in json.dumps(request.body) for request in deployed.google.requests)


def test_each_account_has_only_the_roles_that_it_needs(cloud: Google) -> None:
    held = {
        (resource, binding["role"], member)
        for resource, policy in cloud.policies.items()
        for binding in policy["bindings"]
        for member in binding["members"]
    }
    agent = f"serviceAccount:service-{NUMBER}@gcp-sa-pubsub.iam.gserviceaccount.com"
    service = f"{REGION}/services/webhook-relay"
    assert held == {
        (HOME, "roles/datastore.user", f"serviceAccount:{ACCOUNT}"),
        (
            f"{HOME}/secrets/svix-token",
            "roles/secretmanager.secretAccessor",
            f"serviceAccount:{ACCOUNT}",
        ),
        (service, "roles/run.invoker", f"serviceAccount:{PUSH}"),
        (service, "roles/run.invoker", f"serviceAccount:{RECONCILE}"),
        (f"{HOME}/topics/webhook-relay-dead-letters", "roles/pubsub.publisher", agent),
        (PUSH_SUBSCRIPTION, "roles/pubsub.subscriber", agent),
    }


def test_the_subscriptions_have_the_right_settings(cloud: Google) -> None:
    push, dead = cloud.resources[PUSH_SUBSCRIPTION], cloud.resources[DEAD_SUBSCRIPTION]
    assert push["pushConfig"] == {
        "pushEndpoint": f"{URL}/notifications",
        "oidcToken": {"serviceAccountEmail": PUSH, "audience": URL},
    }
    assert push["topic"] == f"{HOME}/topics/events"
    assert push["ackDeadlineSeconds"] == dead["ackDeadlineSeconds"] == 300
    assert push["retryPolicy"] == {"minimumBackoff": "10s", "maximumBackoff": "600s"}
    assert push["deadLetterPolicy"] == {
        "deadLetterTopic": f"{HOME}/topics/webhook-relay-dead-letters",
        "maxDeliveryAttempts": 100,
    }
    assert (push["messageRetentionDuration"], push["retainAckedMessages"]) == ("604800s", True)
    assert dead["messageRetentionDuration"] == "2678400s"
    assert dead["expirationPolicy"] == push["expirationPolicy"] == {}


def test_the_indexes_are_those_of_the_file(cloud: Google) -> None:
    """Firestore has exactly the indexes and expiry policies of deploy/firestore-indexes.txt."""
    held = set()
    for path, each in cloud.resources.items():
        found = re.fullmatch(rf"{re.escape(DATABASE)}/collectionGroups/(\w+)/(\w+)/(.+)", path)
        if found is None:
            continue
        group, kind, name = found.groups()
        if kind == "indexes":
            assert {column["order"] for column in each["fields"]} == {"ASCENDING"}
            columns = [column["fieldPath"] for column in each["fields"]]
            held.add((group, "composite", " ".join(columns[:-1])))
        if "indexConfig" in each:
            indexed = bool(each["indexConfig"].get("indexes"))
            held.add((group, "indexed" if indexed else "unindexed", name))
        if "ttlConfig" in each:
            held.add((group, "ttl", name))
    table = (ROOT / "deploy" / "firestore-indexes.txt").read_text().splitlines()
    rows = [line.split(maxsplit=2) for line in table if not line.startswith("#")]
    assert held == {(group, kind, fields) for group, kind, fields in rows}
    assert ("events", "composite", "state shard touched_at") in held


def test_the_function_has_the_right_settings(cloud: Google) -> None:
    held = cloud.resources[FUNCTION]
    service: dict[str, Any] = held["serviceConfig"]
    assert held["buildConfig"]["runtime"] == "python313"
    assert held["buildConfig"]["entryPoint"] == "notifications"
    assert service["serviceAccountEmail"] == ACCOUNT
    assert service["maxInstanceRequestConcurrency"] == 800
    assert (service["minInstanceCount"], service["maxInstanceCount"]) == (1, 4)
    assert (service["availableCpu"], service["availableMemory"]) == ("1", "512Mi")
    (secret,) = service["secretEnvironmentVariables"]
    assert (secret["key"], secret["secret"], secret["version"]) == ("SVIX_TOKEN", "svix-token", "1")
    environment = service["environmentVariables"]
    settings = Settings.from_environment(environment | {"SVIX_TOKEN": TOKEN})
    assert settings.function_timeout == service["timeoutSeconds"] == 270
    assert environment["BODIES_MIB"] == "64"


def test_the_bundle_is_the_function_and_holds_no_secret(deployed: Deployed, tmp_path: Path) -> None:
    bundle = zipfile.ZipFile(io.BytesIO(deployed.google.uploads[0]))
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "relay").rglob("*.py")}
    files = {name for name in bundle.namelist() if not name.endswith("/")}
    assert files == {"main.py", "requirements.txt"} | package
    assert not [name for name in files if TOKEN.encode() in bundle.read(name)]


def test_reconciliation_is_called_every_hour_by_its_own_account(cloud: Google) -> None:
    job = cloud.resources[JOB]
    assert (job["schedule"], job["timeZone"]) == ("17 * * * *", "Etc/UTC")
    assert job["httpTarget"]["uri"] == f"{URL}/reconcile"
    assert job["httpTarget"]["httpMethod"] == "POST"
    assert job["httpTarget"]["oidcToken"] == {"serviceAccountEmail": RECONCILE, "audience": URL}
    assert job["attemptDeadline"] == "270s"


def filled_in(kind: str) -> dict[str, Any]:
    """The contents of the files, by name."""
    names = {
        "FUNCTION": "webhook-relay",
        "TOPIC": "events",
        "SUBSCRIPTION": "webhook-relay-push",
        "DEAD_LETTER_SUBSCRIPTION": "webhook-relay-dead-letters",
    }
    files = (ROOT / "deploy" / kind).iterdir()
    texts = {path.stem: Template(path.read_text()).safe_substitute(names) for path in files}
    return {name: json.loads(text) for name, text in texts.items()}


def test_the_metrics_are_those_of_the_files(cloud: Google) -> None:
    for name, metric in filled_in("metrics").items():
        held = cloud.resources[f"{HOME}/metrics/webhook-relay-{name}"]
        for part in ("filter", "valueExtractor", "labelExtractors"):
            assert held.get(part) == metric.get(part)


def test_the_alerts_and_the_dashboard_are_those_of_the_files(cloud: Google) -> None:
    held = {
        policy["userLabels"]["relay_alert"]: policy
        for path, policy in cloud.resources.items()
        if "/alertPolicies/" in path
    }
    wanted = filled_in("alerts")
    assert held.keys() == wanted.keys()
    for name, policy in wanted.items():
        assert held[name]["displayName"] == policy["displayName"]
        assert held[name]["documentation"]["content"] == policy["documentation"]["content"]
        assert held[name]["userLabels"]["relay"] == "webhook-relay"
        for condition, sent in zip(policy["conditions"], held[name]["conditions"], strict=True):
            for field, value in condition.items():
                if isinstance(value, dict):
                    kept = {part: sent[field].get(part) for part in ("filter", "query")}
                    assert kept == {part: value.get(part) for part in ("filter", "query")}
    (dashboard,) = (found for path, found in cloud.resources.items() if "/dashboards/" in path)
    assert dashboard["displayName"] == "webhook-relay"


def test_a_run_corrects_everything_that_differs_and_nothing_else(
    cloud: Google, deployed: Deployed
) -> None:
    """The Svix rate and the token changed, and resources were changed by hand or are obsolete."""
    alerts = [path for path in cloud.resources if "/alertPolicies/" in path]
    dashboard = next(path for path in cloud.resources if "/dashboards/" in path)
    metric = f"{HOME}/metrics/webhook-relay-lag"
    cloud.resources[metric]["description"] = "[webhook-relay 0123] by hand"
    cloud.resources[alerts[0]]["userLabels"]["relay_hash"] = "another"
    channels = [f"{HOME}/notificationChannels/{number}" for number in (7, 8)]
    cloud.resources[alerts[0]]["notificationChannels"] = channels
    cloud.resources[dashboard]["labels"] = {}
    # An obsolete alert and metric of this relay, and the same two of another relay.
    for relay, number in (("webhook-relay", 1), ("webhook-relay-eu", 2)):
        path = f"{HOME}/alertPolicies/{number}"
        labels = {"relay": relay, "relay_alert": "was_once", "relay_hash": "x"}
        cloud.resources[path] = {"name": path, "displayName": "once", "userLabels": labels}
        path = f"{HOME}/metrics/{relay}-was-once"
        cloud.resources[path] = {"name": f"{relay}-was-once", "description": f"[{relay} 0] once"}
    secret = cloud.resources[f"{HOME}/secrets/svix-token"]
    secret["versions"][0]["version"]["state"] = "DESTROYED"

    ended = deployed.deploy("--token-stdin", "--svix-rate", "12")

    assert ended.returncode == 0, ended.stderr
    changes = [str(request) for request in cloud.changes]
    # Whenever gcloud deploys a function without public access, it also writes the invokers.
    assert [change for change in changes if not change.endswith("IamPolicy")] == [
        f"POST /v1/{HOME}/secrets/svix-token:addVersion",
        f"PATCH /v1/{PUSH_SUBSCRIPTION}",
        f"PATCH /v1/{DEAD_SUBSCRIPTION}",
        f"PATCH /v2/{FUNCTION}",
        f"PATCH /v1/{JOB}",
        f"PUT /v2/{metric}",
        f"PATCH /v3/{alerts[0]}",
        f"DELETE /v3/{HOME}/alertPolicies/1",
        f"DELETE /v2/{HOME}/metrics/webhook-relay-was-once",
        f"DELETE /v1/{dashboard}",
        f"POST /v1/{HOME}/dashboards",
    ]
    push = cloud.resources[PUSH_SUBSCRIPTION]
    assert push["ackDeadlineSeconds"] == 580
    assert push["pushConfig"]["oidcToken"]["audience"] == URL
    (version,) = cloud.resources[FUNCTION]["serviceConfig"]["secretEnvironmentVariables"]
    assert version["version"] == "2"
    assert cloud.resources[alerts[0]]["notificationChannels"] == channels


def test_status_fits_on_one_page(cloud: Google, deployed: Deployed) -> None:
    cloud.finish_building()
    payloads: list[dict[str, Any]] = [
        {"outcome": "delivered", "project": "acme"},
        {"outcome": "unavailable", "detail": "ConnectError"},
        {"message": "reconciliation", "reconciliation": {"needs_operator": 2, "complete": True}},
    ]
    resource = {"type": "cloud_run_revision", "labels": {"service_name": "webhook-relay"}}
    cloud.entries[:] = [
        {
            "timestamp": f"2999-01-01T00:00:0{second}Z",
            "severity": ("INFO", "WARNING", "ERROR")[second],
            "resource": resource,
            "jsonPayload": payload,
        }
        for second, payload in enumerate(payloads)
    ]
    ended = deployed.deploy("--status")
    assert ended.returncode == 0, ended.stderr
    page = re.sub(" +", " ", ended.stdout)
    for line in (
        f"function ACTIVE {URL} 2026-01-01T00:00:00Z",
        "last delivery 2999-01-01T00:00:00Z acme",
        "last problem 2999-01-01T00:00:01Z unavailable ConnectError",
        "events 42",
        "oldest, in seconds 42",
        "dead letters 3, discarded ones included",
        "last run 2999-01-01T00:00:02Z: 2 event(s) need an operator",
        "schedule ENABLED 17 * * * *",
        "READY events composite state shard touched_at",
        "ACTIVE dead_letters ttl expires_at",
    ):
        assert f"\n {line}\n" in page
    assert len(page.splitlines()) < 40
    assert cloud.changes == []


def test_redrive_pushes_the_dead_letters_with_the_same_credentials(
    cloud: Google, deployed: Deployed
) -> None:
    ended = deployed.deploy("--redrive", "--budget", "30")
    assert ended.returncode == 0, ended.stderr
    pushed = cloud.resources[PUSH_SUBSCRIPTION]["pushConfig"]
    assert cloud.resources[DEAD_SUBSCRIPTION]["pushConfig"] == pushed
    # Its ack deadline stays as it was deployed, although this run has another budget.
    assert cloud.resources[DEAD_SUBSCRIPTION]["ackDeadlineSeconds"] == 300
    ended = deployed.deploy("--redrive-stop")
    assert ended.returncode == 0, ended.stderr
    assert not (cloud.resources[DEAD_SUBSCRIPTION]["pushConfig"] or {}).get("pushEndpoint")


def test_teardown_asks_and_keeps_data_and_token(cloud: Google, deployed: Deployed) -> None:
    ended = deployed.deploy("--teardown", said="no\n")
    assert (ended.returncode, cloud.changes) == (1, [])
    ended = deployed.deploy("--teardown", said="acme-relay\n")
    assert ended.returncode == 0, ended.stderr
    kept = {
        path
        for path in cloud.resources
        if "/collectionGroups/" not in path and "/services/" not in path
    }
    assert kept == {DATABASE, f"{HOME}/secrets/svix-token", f"{HOME}/topics/events"}


def test_a_dry_run_without_a_login_says_what_it_could_not_check(tmp_path: Path) -> None:
    require_gcloud()
    ended = run("--dry-run", said="", environment=isolated(tmp_path))
    assert ended.returncode == 0, ended.stderr
    assert "active account" in ended.stdout
    assert "   not checked: gcloud services list --enabled" in ended.stdout
    assert "   would run: gcloud scheduler jobs create http webhook-relay-recon" in ended.stdout
    assert ": what they look for is assumed to be missing.\n" in ended.stdout
