"""deploy.sh's steps, with a stand-in for gcloud.

Only Pub/Sub's part goes through the real gcloud, to the emulator. When deploy.sh reads the state of
the project, the stand-in prints what the test gives it, in the real gcloud's format. test_deploy.py
shows that the real gcloud accepts each command and prints in this format.
"""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.gcloud import isolated, require_gcloud
from tests.deploy.script import Script
from tests.function import ROOT, TOKEN

CHANGES = 45
URL = "https://relay.example"
PUSH = "webhook-relay-push@acme-relay.iam.gserviceaccount.com"


def test_a_new_project_gets_every_resource(script: Script) -> None:
    run = script.deploy()
    assert run.returncode == 0, run.stderr
    assert run.stdout.endswith(f"Done: {CHANGES} change(s).\n")
    assert all("--project=acme-relay" in call for call in script.calls())


KINDS = (
    "services enable",
    "iam service-accounts create",
    "firestore databases create",
    "projects add-iam-policy-binding",
    "firestore indexes fields update",
    "firestore indexes composite create",
    "firestore fields ttls update",
    "secrets create",
    "secrets versions add",
    "secrets add-iam-policy-binding",
    "pubsub topics create",
    "pubsub subscriptions create webhook-relay-dead-letters",
    "functions deploy",
    "functions add-invoker-policy-binding",
    "pubsub subscriptions create webhook-relay-push",
    "pubsub topics add-iam-policy-binding",
    "pubsub subscriptions add-iam-policy-binding",
    "scheduler jobs create",
    "logging metrics create",
    "alpha monitoring policies create",
    "monitoring dashboards create",
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_that_fails_ends_the_run(script: Script, kind: str) -> None:
    run = script.deploy(fail_at=kind)
    assert run.returncode == 1
    step = run.stdout.split("== ")[-1].splitlines()[0]
    assert f'Failed at the step "{step}"' in run.stderr
    assert "it broke here" in run.stderr
    assert "run the same command" in run.stderr
    assert " ".join(script.calls()[-1]).startswith(kind)


def test_kinds_lists_every_change(script: Script) -> None:
    script.deploy()
    changes = [" ".join(call) for call in script.calls()]
    looks = (" list ", " describe ", "get-iam-policy", "versions access")
    others = [c for c in changes if not c.startswith(KINDS) and not any(w in c for w in looks)]
    assert others == []


def test_help_names_every_option(script: Script) -> None:
    run = script("--help")
    source = (ROOT / "deploy.sh").read_text()
    parsing = source[source.index("while (($#))") : source.index("\ndone\n")]
    options = {word.rstrip(")") for word in shlex.split(parsing, posix=False)}
    options = {word for word in options if word.startswith("--") and word != "--*"}
    assert run.returncode == 0
    assert len(options) > 25
    assert not [option for option in options if option not in run.stdout]


def subscriptions(deadline: int, *, redriving: bool = False) -> dict[str, str]:
    """The output of `subscriptions list` for a deployed project."""
    push = f"{URL}/notifications;{PUSH};{URL}"
    dead = push if redriving else ";;"
    names = "webhook-relay-dead-letters"
    return {
        "pubsub subscriptions list": (
            f"webhook-relay-push;events;{push};{deadline};10s;600s;604800s;{names};100;True\\n"
            f"{names};{names};{dead};{deadline};10s;600s;2678400s;;;"
        )
    }


def updates_and_deployment(script: Script) -> list[str]:
    """The calls that change a subscription or the function, in order."""
    calls = [*script.calls()]
    kept = [call for call in calls if call[1] == "deploy" or call[2:3] == ["update"]]
    return [" ".join(call[1:4] if call[1] != "deploy" else call[1:2]) for call in kept]


def test_ack_deadlines_are_raised_before_the_function_changes(script: Script) -> None:
    """The new function may let a push wait longer than the old deadline.

    In a redrive, the dead-letter subscription pushes to it too.
    """
    assert script.deploy(looks=subscriptions(120, redriving=True)).returncode == 0
    order = updates_and_deployment(script)
    assert order[:3] == [
        "subscriptions update webhook-relay-push",
        "subscriptions update webhook-relay-dead-letters",
        "deploy",
    ]


def test_ack_deadlines_are_lowered_after_the_function_changed(script: Script) -> None:
    assert script.deploy(looks=subscriptions(600, redriving=True)).returncode == 0
    assert updates_and_deployment(script) == [
        "deploy",
        "subscriptions update webhook-relay-push",
        "subscriptions update webhook-relay-dead-letters",
    ]
    (dead,) = script.calls("pubsub", "subscriptions", "update", "webhook-relay-dead-letters")
    assert f"--push-endpoint={URL}/notifications" in dead


def test_a_dead_letter_subscription_without_an_endpoint_gets_none(script: Script) -> None:
    assert script.deploy(looks=subscriptions(600)).returncode == 0
    (dead,) = script.calls("pubsub", "subscriptions", "update", "webhook-relay-dead-letters")
    assert not [argument for argument in dead if argument.startswith("--push")]
    assert script.deploy(looks=subscriptions(300)).returncode == 0
    assert updates_and_deployment(script) == ["deploy"]


def test_another_topic_is_refused_for_the_same_subscription(script: Script) -> None:
    run = script.deploy("--topic", "others", looks=subscriptions(300))
    assert run.returncode == 1
    assert "reads the topic events" in run.stderr


@pytest.mark.parametrize(
    ("found", "options", "said"),
    [
        ("FIRESTORE_NATIVE eur3", [], "unchanged: the database (default), in eur3"),
        ("FIRESTORE_NATIVE eur3", ["--firestore-location", "eur3"], "unchanged: the da"),
        ("FIRESTORE_NATIVE eur3", ["--firestore-location", "nam5"], "a database can't be moved"),
        ("DATASTORE_MODE eur3", [], "is in Datastore mode"),
    ],
)
def test_an_existing_database_is_kept_or_refused(
    script: Script, found: str, options: list[str], said: str
) -> None:
    run = script.deploy(*options, looks={"firestore databases describe": found})
    assert said in run.stdout + run.stderr
    assert script.calls("firestore", "databases", "create") == []
    assert run.returncode == (0 if said.startswith("unchanged") else 1)


@pytest.mark.parametrize(
    ("options", "location"), [([], "europe-west1"), (["--firestore-location", "eur3"], "eur3")]
)
def test_a_new_database_is_in_the_region_or_where_the_option_says(
    script: Script, options: list[str], location: str
) -> None:
    script.deploy(*options)
    (made,) = script.calls("firestore", "databases", "create")
    assert f"--location={location}" in made


def test_an_index_that_needs_repair_ends_the_run(script: Script) -> None:
    found = "events NEEDS_REPAIR state shard touched_at __name__"
    run = script.deploy(looks={"firestore indexes composite list": found})
    assert run.returncode == 1
    assert "events composite state shard touched_at is in the state NEEDS_REPAIR" in run.stderr


@pytest.mark.parametrize(
    ("versions", "held", "version", "adds"),
    [
        ("2 DISABLED\\n1 ENABLED", TOKEN, "1", 0),
        ("2 DESTROYED\\n1 ENABLED", "another", "1", 1),
        ("2 ENABLED\\n1 ENABLED", TOKEN, "2", 0),
        ("2 DISABLED\\n1 DESTROYED", "", None, 1),
    ],
)
def test_a_token_is_compared_with_the_newest_version_that_is_enabled(
    script: Script, versions: str, held: str, version: str | None, adds: int
) -> None:
    looks = {"secrets versions list": versions, f"secrets versions access {version}": held}
    run = script.deploy(looks=looks)
    assert len(script.calls("secrets", "versions", "add")) == adds
    accessed = [call[3] for call in script.calls("secrets", "versions", "access")]
    assert accessed == ([version] if version else [])
    # The stand-in always lists the same versions. If none is enabled, the run can't go on.
    assert run.returncode == (0 if version else 1)


def test_without_a_token_an_enabled_version_is_needed(script: Script) -> None:
    where = ("--project", "acme-relay", "--region", "europe-west1")
    run = script(*where, looks={"secrets versions list": "1 DISABLED"})
    assert "has no version that is enabled" in run.stderr
    run = script(*where, looks={"secrets versions list": "2 DISABLED\\n1 ENABLED"})
    assert run.returncode == 0
    (deployed,) = script.calls("functions", "deploy")
    assert "--set-secrets=SVIX_TOKEN=svix-token:1" in deployed


def test_without_a_channel_option_alerts_keep_their_channels(script: Script) -> None:
    held = "webhook-relay lag 0 projects/acme-relay/alertPolicies/1 projects/acme-relay/c/7"
    looks = {"alpha monitoring policies list": held}
    script.deploy(looks=looks)
    (update,) = script.calls("alpha", "monitoring", "policies", "update")
    assert "--set-notification-channels=projects/acme-relay/c/7" in update
    script.deploy("--channel", "projects/acme-relay/c/8", looks=looks)
    (update,) = script.calls("alpha", "monitoring", "policies", "update")
    assert "--set-notification-channels=projects/acme-relay/c/8" in update


def test_a_dry_run_prints_what_a_run_does(script: Script) -> None:
    printed = script.deploy("--dry-run").stdout
    would = [line.removeprefix("   would run: gcloud ") for line in printed.splitlines()]
    would = [line for line in would if line.startswith(tuple("abcdefghijklmnopqrstuvwxyz"))]
    script.deploy()
    did = [call[:3] for call in script.calls()]
    assert len(would) == CHANGES
    assert all(shlex.split(line)[:3] in did for line in would)


@pytest.mark.parametrize(
    "fault",
    [
        "Unable to find the server at serviceusage.googleapis.com",
        "There was a problem refreshing your current auth tokens: Failed to resolve host",
    ],
)
def test_a_dry_run_without_a_network_calls_gcloud_once(script: Script, fault: str) -> None:
    """The next call would fail as well, perhaps after a minute."""
    (script.path / "gcloud").unlink()
    gcloud = script.path / "gcloud"
    gcloud.write_text(f'#!/bin/sh\necho x >>"$CALLS"\necho "ERROR: {fault}" >&2\nexit 1\n')
    gcloud.chmod(0o755)
    run = script.deploy("--dry-run")
    assert run.returncode == 0, run.stderr
    assert fault in run.stdout
    assert script.calls_file.read_text() == "x\n"
    assert "21 lookup(s) failed or were skipped" in run.stdout
    assert f"Dry run: nothing was changed. {CHANGES} command(s) would run." in run.stdout
    run = script.deploy()
    assert run.returncode == 1
    assert fault in run.stderr


def test_a_dry_run_goes_on_after_a_permission_error(script: Script) -> None:
    """Calls are denied in a project whose APIs are not enabled yet."""
    (script.path / "gcloud").unlink()
    gcloud = script.path / "gcloud"
    gcloud.write_text('#!/bin/sh\necho "$*" >>"$CALLS"\necho "PERMISSION_DENIED: no" >&2\nexit 1\n')
    gcloud.chmod(0o755)
    run = script.deploy("--dry-run")
    assert run.returncode == 0, run.stderr
    assert script.calls_file.read_text().count(" --quiet\n") == 21
    assert "   not checked: gcloud pubsub topics list\n" in run.stdout
    assert "21 lookup(s) failed or were skipped" in run.stdout


@pytest.mark.parametrize("options", [["--dry-run"], []])
def test_without_gcloud(script: Script, options: list[str]) -> None:
    """A missing gcloud must not be taken for an empty project."""
    (script.path / "gcloud").unlink()
    tools = "bash dirname cat mkdir mktemp rm grep tr git find sort xargs sed awk cut basename head"
    for tool in tools.split():
        (script.path / tool).symlink_to(str(shutil.which(tool)))
    where = ("--project", "acme-relay", "--region", "europe-west1")
    run = subprocess.run(  # noqa: S603 - our own command
        [ROOT / "deploy.sh", *where, *options],
        env={"PATH": str(script.path)},
        input="",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.returncode == (0 if options else 1)
    assert "command not found" in run.stdout + run.stderr


def test_pubsub_accepts_the_commands(script: Script, pubsub_emulator: str, tmp_path: Path) -> None:
    gcloud = require_gcloud()
    assert script.deploy().returncode == 0
    environment = {
        **isolated(tmp_path),
        "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_PUBSUB": f"http://{pubsub_emulator}/",
    }

    def run(*arguments: str) -> str:
        return subprocess.run(  # noqa: S603 - our own command
            [gcloud, *arguments],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout

    made = [c for c in script.calls("pubsub") if c[2] == "create"]
    assert len(made) == 4
    for call in made:
        # The emulator takes a retention of up to 7 days, Pub/Sub itself up to 31.
        run(*(argument.replace("=31d", "=7d") for argument in call))
    held = run(
        "pubsub", "subscriptions", "describe", "webhook-relay-push", "--project=acme-relay",
        "--format=value(ackDeadlineSeconds,retryPolicy.maximumBackoff,pushConfig.pushEndpoint)",
    )  # fmt: skip
    assert held.split() == ["300", "600s", f"{URL}/notifications"]
