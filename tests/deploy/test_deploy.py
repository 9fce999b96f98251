"""deploy.sh with the real gcloud, against a loopback server that answers as Google's APIs do."""

import io
import json
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from string import Template
from typing import Any

import pytest

from relay.config import Settings
from tests.deploy.google import NUMBER, SERVICES, Google, google, token_in
from tests.function import ROOT, TOKEN

Deploy = Callable[..., subprocess.CompletedProcess[str]]
HOME = "projects/acme-relay"
ACCOUNT = "serviceAccount:webhook-relay@acme-relay.iam.gserviceaccount.com"
PUSH = "webhook-relay-push@acme-relay.iam.gserviceaccount.com"
URL = "https://webhook-relay-abc123-ew.a.run.app"


@pytest.fixture(scope="module")
def cloud() -> Iterator[Google]:
    """One empty cloud for the module's tests, which follow one upon the other."""
    if shutil.which("gcloud") is None:
        if os.environ.get("REQUIRE_EMULATORS") == "1":
            pytest.fail(
                "the gcloud CLI is not installed: https://cloud.google.com/sdk/docs/install"
            )
        pytest.skip("deploy.sh is not tested: the gcloud CLI is not installed")
    with google() as running:
        yield running


@pytest.fixture(scope="module")
def deploy(cloud: Google, tmp_path_factory: pytest.TempPathFactory) -> Deploy:
    """Runs the script, with nothing of this machine's own gcloud settings."""
    environment = {
        "CLOUDSDK_CONFIG": str(tmp_path_factory.mktemp("gcloud")),
        "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
        "CLOUDSDK_CORE_PROJECT": "acme-relay",
        "SVIX_TOKEN": "",
    }
    environment |= {f"CLOUDSDK_API_ENDPOINT_OVERRIDES_{s}": f"{cloud.url}/" for s in SERVICES}

    def run(*options: str, said: str = f"{TOKEN}\n") -> subprocess.CompletedProcess[str]:
        command = [str(ROOT / "deploy.sh"), "--project", "acme-relay", "--region", "europe-west1"]
        ended = subprocess.run(  # noqa: S603 - our own command
            [*command, *options],
            env=os.environ | environment,
            input=said,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert cloud.unknown == []
        assert TOKEN not in ended.stdout + ended.stderr
        return ended

    return run


def test_a_dry_run_changes_nothing(cloud: Google, deploy: Deploy) -> None:
    run = deploy("--token-stdin", "--dry-run")
    assert run.returncode == 0, run.stderr
    assert cloud.changes == []
    assert len(re.findall("^   would: gcloud ", run.stdout, re.MULTILINE)) == 36


@pytest.mark.parametrize(
    ("failure", "step"),
    [
        ("PATCH /v1/projects/acme-relay/databases", "TTL policies"),
        ("POST /v2/projects/acme-relay/locations/europe-west1/functions", "The function"),
        ("POST /v3/projects/acme-relay/alertPolicies", "Metrics, alerts, dashboard"),
    ],
)
def test_a_failure_names_the_step_and_what_to_do(
    cloud: Google, deploy: Deploy, failure: str, step: str
) -> None:
    cloud.failures.append(failure)
    run = deploy("--token-stdin")
    cloud.failures.clear()
    assert run.returncode == 1
    assert f'Failed at the step "{step}' in run.stderr
    assert "does not have permission" in run.stderr
    assert "needs roles/owner" in run.stderr


def test_the_next_run_completes_it_and_one_more_changes_nothing(
    cloud: Google, deploy: Deploy
) -> None:
    run = deploy("--token-stdin")
    assert run.returncode == 0, run.stderr
    changed = len(cloud.changes)
    run = deploy("--token-stdin")
    assert run.returncode == 0, run.stderr
    assert [str(request) for request in cloud.changes[changed:]] == []
    assert run.stdout.endswith("Done: nothing had to be changed.\n")


def test_the_token_is_stored_once_and_only_as_the_secret(cloud: Google) -> None:
    (version,) = cloud.resources[f"{HOME}/secrets/svix-token"]["versions"]
    assert token_in(version) == TOKEN
    assert not any(TOKEN in json.dumps(request.body) for request in cloud.requests)


def test_who_may_do_what(cloud: Google) -> None:
    held = {
        (resource, binding["role"], member)
        for resource, policy in cloud.policies.items()
        for binding in policy["bindings"]
        for member in binding["members"]
    }
    agent = f"serviceAccount:service-{NUMBER}@gcp-sa-pubsub.iam.gserviceaccount.com"
    service = f"{HOME}/locations/europe-west1/services/webhook-relay"
    assert held == {
        (HOME, "roles/datastore.user", ACCOUNT),
        (f"{HOME}/secrets/svix-token", "roles/secretmanager.secretAccessor", ACCOUNT),
        (service, "roles/run.invoker", f"serviceAccount:{PUSH}"),
        (f"{HOME}/topics/webhook-relay-dead-letters", "roles/pubsub.publisher", agent),
        (f"{HOME}/subscriptions/webhook-relay-push", "roles/pubsub.subscriber", agent),
    }


def test_the_subscriptions(cloud: Google) -> None:
    push = cloud.resources[f"{HOME}/subscriptions/webhook-relay-push"]
    assert push["pushConfig"] == {
        "pushEndpoint": f"{URL}/notifications",
        "oidcToken": {"serviceAccountEmail": PUSH, "audience": URL},
    }
    assert push["topic"] == f"{HOME}/topics/events"
    assert push["ackDeadlineSeconds"] == 120
    assert push["retryPolicy"] == {"minimumBackoff": "10s", "maximumBackoff": "600s"}
    assert push["deadLetterPolicy"] == {
        "deadLetterTopic": f"{HOME}/topics/webhook-relay-dead-letters",
        "maxDeliveryAttempts": 100,
    }
    assert (push["messageRetentionDuration"], push["retainAckedMessages"]) == ("604800s", True)
    dead = cloud.resources[f"{HOME}/subscriptions/webhook-relay-dead-letters"]
    assert dead["messageRetentionDuration"] == "2678400s"
    assert dead["expirationPolicy"] == push["expirationPolicy"] == {}


def test_the_fields(cloud: Google) -> None:
    groups = f"{HOME}/databases/(default)/collectionGroups"
    fields = {
        path.removeprefix(groups): held for path, held in cloud.resources.items() if groups in path
    }
    exempted = {name for name, held in fields.items() if not held["indexConfig"].get("indexes")}
    assert exempted == {
        "/events/fields/first_claimed_at", "/events/fields/delivered_at",
        "/events/fields/expires_at", "/dead_letters/fields/parked_at",
        "/dead_letters/fields/expires_at", "/dead_letters/fields/data",
        "/dead_letters/fields/attributes",
    }  # fmt: skip
    lasting = {name for name, held in fields.items() if held.get("ttlConfig")}
    assert lasting == {"/events/fields/expires_at", "/dead_letters/fields/expires_at"}


def test_the_function(cloud: Google) -> None:
    held = cloud.resources[f"{HOME}/locations/europe-west1/functions/webhook-relay"]
    service: dict[str, Any] = held["serviceConfig"]
    assert held["buildConfig"]["runtime"] == "python313"
    assert held["buildConfig"]["entryPoint"] == "notifications"
    assert service["serviceAccountEmail"] == ACCOUNT.removeprefix("serviceAccount:")
    assert service["timeoutSeconds"] == 75
    assert service["maxInstanceRequestConcurrency"] == 500
    assert (service["minInstanceCount"], service["maxInstanceCount"]) == (1, 5)
    assert (service["availableCpu"], service["availableMemory"]) == ("1", "512Mi")
    (secret,) = service["secretEnvironmentVariables"]
    assert (secret["key"], secret["secret"], secret["version"]) == ("SVIX_TOKEN", "svix-token", "1")
    settings = Settings.from_environment(service["environmentVariables"] | {"SVIX_TOKEN": TOKEN})
    assert settings.function_timeout == service["timeoutSeconds"]
    bundle = zipfile.ZipFile(io.BytesIO(cloud.uploads[-1])).namelist()
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "relay").rglob("*.py")}
    files = {name for name in bundle if not name.endswith("/")}
    assert files == {"main.py", "requirements.txt"} | package


def filled_in(kind: str) -> dict[str, Any]:
    """What the files say, by their name."""
    names = {
        "FUNCTION": "webhook-relay",
        "TOPIC": "events",
        "SUBSCRIPTION": "webhook-relay-push",
        "DEAD_LETTER_SUBSCRIPTION": "webhook-relay-dead-letters",
    }
    files = (ROOT / "deploy" / kind).iterdir()
    return {path.stem: json.loads(Template(path.read_text()).substitute(names)) for path in files}


def test_the_metrics(cloud: Google) -> None:
    for name, metric in filled_in("metrics").items():
        held = cloud.resources[f"{HOME}/metrics/webhook-relay-{name}"]
        assert held["filter"] == metric["filter"]
        assert held.get("valueExtractor") == metric.get("valueExtractor")
        assert held.get("labelExtractors") == metric.get("labelExtractors")


def test_the_alerts_and_the_dashboard(cloud: Google) -> None:
    held = {
        policy["displayName"]: policy
        for path, policy in cloud.resources.items()
        if "/alertPolicies/" in path
    }
    wanted = {policy["displayName"]: policy for policy in filled_in("alerts").values()}
    assert held.keys() == wanted.keys()
    for name, policy in wanted.items():
        assert held[name]["documentation"]["content"] == policy["documentation"]["content"]
        for condition, sent in zip(policy["conditions"], held[name]["conditions"], strict=True):
            for field, value in condition.items():
                if isinstance(value, dict):
                    told = {part: sent[field].get(part) for part in ("filter", "query")}
                    assert told == {part: value.get(part) for part in ("filter", "query")}
    (dashboard,) = (found for path, found in cloud.resources.items() if "/dashboards/" in path)
    assert dashboard["displayName"] == "webhook-relay"
    assert "${" not in json.dumps(list(cloud.resources.values()))


def test_a_setting_that_differs_is_all_that_changes(cloud: Google, deploy: Deploy) -> None:
    changed = len(cloud.changes)
    run = deploy("--budget", "120")
    assert run.returncode == 0, run.stderr
    # The deployment rewrites the invokers, as the real one does where nobody may come unnamed.
    paths = [
        request.path.removeprefix("/v1/").removeprefix("/v2/")
        for request in cloud.changes[changed:]
    ]
    assert [path for path in paths if not path.endswith("IamPolicy")] == [
        f"{HOME}/locations/europe-west1/functions/webhook-relay",
        f"{HOME}/subscriptions/webhook-relay-push",
    ]
    push = cloud.resources[f"{HOME}/subscriptions/webhook-relay-push"]
    assert push["ackDeadlineSeconds"] == 180
    assert push["pushConfig"]["oidcToken"]["audience"] == URL


def test_what_was_changed_by_hand_is_brought_back(cloud: Google, deploy: Deploy) -> None:
    metric = f"{HOME}/metrics/webhook-relay-lag"
    alert = next(path for path in cloud.resources if "/alertPolicies/" in path)
    dashboard = next(path for path in cloud.resources if "/dashboards/" in path)
    cloud.resources[metric] = {**cloud.resources[metric], "description": "by hand"}
    cloud.resources[alert] = {**cloud.resources[alert], "userLabels": {}}
    cloud.resources[dashboard] = {**cloud.resources[dashboard], "labels": {}}
    changed = len(cloud.changes)
    run = deploy("--budget", "120")
    assert run.returncode == 0, run.stderr
    assert [str(request) for request in cloud.changes[changed:]] == [
        f"PUT /v2/{metric}",
        f"PATCH /v3/{alert}",
        f"DELETE /v1/{dashboard}",
        f"POST /v1/{HOME}/dashboards",
    ]


def test_another_topic_is_refused_for_the_same_subscription(cloud: Google, deploy: Deploy) -> None:
    run = deploy("--budget", "120", "--topic", "others")
    assert run.returncode == 1
    assert "reads projects/acme-relay/topics/events" in run.stderr
    del cloud.resources[f"{HOME}/topics/others"]


def test_status(deploy: Deploy) -> None:
    run = deploy("--status")
    assert run.returncode == 0, run.stderr
    assert f"ACTIVE {URL}" in run.stdout
    assert re.search(r"messages +42\n", run.stdout)
    assert re.search(r"oldest unacked, s +42\n", run.stdout)


def test_redrive_pushes_the_dead_letters_with_the_same_credentials(
    cloud: Google, deploy: Deploy
) -> None:
    dead = f"{HOME}/subscriptions/webhook-relay-dead-letters"
    run = deploy("--redrive")
    assert run.returncode == 0, run.stderr
    pushed = cloud.resources[f"{HOME}/subscriptions/webhook-relay-push"]["pushConfig"]
    assert cloud.resources[dead]["pushConfig"] == pushed
    run = deploy("--redrive-stop")
    assert run.returncode == 0, run.stderr
    assert not (cloud.resources[dead]["pushConfig"] or {}).get("pushEndpoint")


def test_teardown_asks_and_keeps_data_and_token(cloud: Google, deploy: Deploy) -> None:
    changed = len(cloud.changes)
    run = deploy("--teardown", said="no\n")
    assert (run.returncode, cloud.changes[changed:]) == (1, [])
    run = deploy("--teardown", said="acme-relay\n")
    assert run.returncode == 0, run.stderr
    kept = {path for path in cloud.resources if "/fields/" not in path and "/services/" not in path}
    assert kept == {
        f"{HOME}/databases/(default)", f"{HOME}/secrets/svix-token", f"{HOME}/topics/events",
    }  # fmt: skip


def test_the_bundle_holds_no_secret(cloud: Google, tmp_path: Path) -> None:
    zipfile.ZipFile(io.BytesIO(cloud.uploads[-1])).extractall(tmp_path)
    assert not [
        path
        for path in tmp_path.rglob("*")
        if path.is_file() and TOKEN.encode() in path.read_bytes()
    ]
