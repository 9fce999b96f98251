"""deploy.sh's steps and options, with a stand-in for gcloud; Pub/Sub's part with the emulator."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from relay.config import Settings
from tests.function import ROOT, TOKEN

CHANGES = 36
STAND_IN = Path(__file__).parent / "gcloud-stand-in.sh"


class Script:
    """deploy.sh beside the stand-in."""

    def __init__(self, folder: Path) -> None:
        self.calls_file = folder / "calls"
        self._path = folder / "bin"
        self._path.mkdir()
        (self._path / "gcloud").symlink_to(STAND_IN)

    def __call__(
        self, *options: str, fail_at: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run it, for a project that has nothing."""
        for leftover in self.calls_file.parent.glob("calls*"):
            leftover.unlink()
        environment = {"PATH": f"{self._path}:{os.environ['PATH']}", "CALLS": str(self.calls_file)}
        environment["FAIL_AT"] = str(fail_at or "")
        ended = subprocess.run(  # noqa: S603 - our own command
            [ROOT / "deploy.sh", *options],
            env=os.environ | environment,
            input=f"{TOKEN}\n",
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert TOKEN not in ended.stdout + ended.stderr + " ".join(map(str, self.calls()))
        return ended

    def deploy(self, *options: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """The whole, with a token."""
        where = ("--project", "acme-relay", "--region", "europe-west1", "--token-stdin")
        return self(*where, *options, **more)

    def calls(self) -> list[list[str]]:
        """What gcloud was called with."""
        if not self.calls_file.exists():
            return []
        calls = self.calls_file.read_text().split("\x1e")[:-1]
        return [call.split("\x1f")[:-1] for call in calls]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """A script and its stand-in."""
    return Script(tmp_path)


def test_a_fresh_project(script: Script) -> None:
    run = script.deploy()
    assert run.returncode == 0, run.stderr
    assert run.stdout.endswith(f"Done: {CHANGES} change(s).\n")
    assert all("--project=acme-relay" in call for call in script.calls())


@pytest.mark.parametrize("number", range(1, CHANGES + 1))
def test_each_change_that_fails_ends_it_there(script: Script, number: int) -> None:
    run = script.deploy(fail_at=number)
    assert run.returncode == 1
    step = run.stdout.split("== ")[-1].splitlines()[0]
    assert f'Failed at the step "{step}"' in run.stderr
    assert "it broke here" in run.stderr
    assert "run the same command" in run.stderr
    changes = (script.calls_file.parent / "calls.changes").read_text().splitlines()
    assert len(changes) == number


@pytest.mark.parametrize(
    "options",
    [
        ["--budget", "24"],
        ["--budget", "541"],
        ["--budget", "60.5"],
        ["--budget", "060"],
        ["--budget"],
        ["--concurrency", "0"],
        ["--min-instances", "6"],
        ["--name", "A"],
        ["--topic", "goog-events"],
        ["--svix-url", "http://svix.example"],
        ["--svix-url", "https://svix.example,LEDGER=sqlite:/tmp/x"],
        ["--token", TOKEN[:3]],
    ],
)
def test_values_that_are_refused(script: Script, options: list[str]) -> None:
    run = script.deploy(*options)
    assert run.returncode == 2
    assert "--help" in run.stderr
    assert script.calls() == []


def test_project_and_region_are_required(script: Script) -> None:
    assert "--project is missing" in script("--region", "europe-west1").stderr
    assert "--region is missing" in script("--project", "acme-relay").stderr


def test_help_names_every_option(script: Script) -> None:
    run = script("--help")
    source = (ROOT / "deploy.sh").read_text()
    options = set(
        shlex.split(source[source.index("while ((") : source.index("done\n")], posix=False)
    )
    options = {option.rstrip(")") for option in options if option.startswith("--")}
    assert run.returncode == 0
    assert len(options) > 20
    assert not [option for option in options if option not in run.stdout]


@pytest.mark.parametrize("budget", [25, 60, 540])
def test_its_times_are_those_of_the_settings(script: Script, budget: int) -> None:
    script.deploy("--budget", str(budget))
    settings = Settings(svix_token=TOKEN, request_budget=budget)
    assert settings.function_timeout < settings.lease < settings.ack_deadline <= 600
    (deployed,) = (call for call in script.calls() if call[:2] == ["functions", "deploy"])
    assert f"--timeout={settings.function_timeout:g}s" in deployed
    environment = next(each for each in deployed if each.startswith("--set-env-vars="))
    assert f"REQUEST_BUDGET_SECONDS={budget}" in environment
    created = [c for c in script.calls() if c[:3] == ["pubsub", "subscriptions", "create"]]
    assert len(created) == 2
    assert all(f"--ack-deadline={settings.ack_deadline:g}" in call for call in created)


def test_a_dry_run_prints_what_a_run_does(script: Script) -> None:
    printed = script.deploy("--dry-run").stdout
    would = [line.removeprefix("   would: gcloud ") for line in printed.splitlines()]
    would = [line for line in would if line.startswith(tuple("abcdefghijklmnopqrstuvwxyz"))]
    script.deploy()
    did = [call[:3] for call in script.calls()]
    assert len(would) == CHANGES
    assert all(shlex.split(line)[:3] in did for line in would)


def test_pubsub_takes_what_it_is_told(script: Script, pubsub_emulator: str, tmp_path: Path) -> None:
    assert script.deploy().returncode == 0
    environment = {
        "CLOUDSDK_CONFIG": str(tmp_path / "gcloud"),
        "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_PUBSUB": f"http://{pubsub_emulator}/",
    }
    gcloud = shutil.which("gcloud")
    assert gcloud is not None

    def run(*arguments: str) -> str:
        return subprocess.run(  # noqa: S603 - our own command
            [gcloud, *arguments],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout

    made = [c for c in script.calls() if c[0] == "pubsub" and c[2] == "create"]
    assert len(made) == 4
    for call in made:
        # The emulator keeps nothing longer than 7 days; Pub/Sub itself up to 31.
        run(*(argument.replace("=31d", "=7d") for argument in call))
    held = run(
        "pubsub", "subscriptions", "describe", "webhook-relay-push", "--project=acme-relay",
        "--format=value(ackDeadlineSeconds,retryPolicy.maximumBackoff,pushConfig.pushEndpoint)",
    )  # fmt: skip
    assert held.split() == ["120", "600s", "https://relay.example/notifications"]
