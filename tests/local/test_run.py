"""`make run`, started as a person would."""

import os
import re
import subprocess
import sys

import pytest

from local.processes import free_port
from tests.function import ROOT, TOKEN, simulator

# Runs `make run` with a stream of a tenth of its length.
_BRIEFLY = """
import sys
from local import run, stream
stream._SECONDS, stream._OUTAGE_AT, stream._OUTAGE_SECONDS = 1.5, 0.5, 0.5
sys.exit(run.main())
"""


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `make run` until it ends, on free ports."""
    ports = ["--port", str(free_port()), "--simulator-port", str(free_port())]
    return subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-c", _BRIEFLY, *ports, *arguments],
        env={**os.environ, **environment},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_demonstration_and_a_stream_lose_nothing() -> None:
    """Svix has a limit and an outage. The customers get each message once."""
    ended = run("--once", "--rate", "60", "--outage")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "got 8 of 8: each once, each signed" in ended.stdout
    assert "an event that Svix refuses       push            200 rejected" in ended.stdout
    assert "180 events in" in ended.stdout
    assert "0 lost, 0 twice" in ended.stdout
    assert ended.stdout.count("got 60 of 60: each once, each signed") == 3


def test_a_real_svix_is_left_as_it_was() -> None:
    """The run uses one application and deletes it. It never prints the token."""
    with simulator("--kind", "open_source") as svix:
        ended = run("--once", "--svix", SVIX_TOKEN=TOKEN, SVIX_SERVER_URL=svix.url)
        calls = svix.control.calls()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    applications = {
        match[1] for call in calls if (match := re.match(r"/api/v1/app/([^/?]+)", call["path"]))
    }
    assert len(applications) == 1
    assert {(call["method"], call["status"]) for call in calls if call["method"] == "DELETE"} == {
        ("DELETE", 204)
    }
    assert TOKEN not in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--svix"], "--svix needs SVIX_TOKEN"), (["--svix", "--outage"], "leave out --svix")],
)
def test_wrong_arguments_are_refused(arguments: list[str], words: str) -> None:
    """They are refused before anything is started."""
    ended = run(*arguments, SVIX_TOKEN="")
    assert ended.returncode == 2
    assert words in ended.stderr
