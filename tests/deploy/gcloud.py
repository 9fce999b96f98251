"""The real gcloud for the suites. `gcloud_server.py` starts it only once."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from local.processes import running

_SERVER = Path(__file__).parent / "gcloud_server.py"
_CLIENT = """#!{python} -SE
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({socket!r})
socket.send_fds(server, [json.dumps([sys.argv[1:], os.getcwd()]).encode()], [0, 1, 2])
sys.exit((server.recv(1) or b"\\1")[0])
"""


def require_gcloud() -> str:
    """The path of gcloud. Without gcloud the test is skipped, or fails if gcloud is required."""
    if (found := shutil.which("gcloud")) is None:
        lacking = "the gcloud CLI is not installed: https://cloud.google.com/sdk/docs/install"
        if os.environ.get("REQUIRE_EMULATORS") == "1":
            pytest.fail(f"REQUIRE_EMULATORS=1, but {lacking}")
        pytest.skip(f"NOT TESTED: {lacking}")
    return found


def isolated(folder: Path) -> dict[str, str]:
    """An environment in which gcloud finds no login and no settings of this machine."""
    return {
        "CLOUDSDK_CONFIG": str(folder / "config"),
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
        "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
        "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "true",
    }


@contextmanager
def warm_gcloud(folder: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """Yields a folder for `PATH` with the real gcloud. Every call has this environment."""
    asked = subprocess.run(  # noqa: S603 - our own command
        [require_gcloud(), "info", "--format=value(basic.python_location,installation.sdk_root)"],
        env=os.environ | environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    python, sdk_root = asked.stdout.strip().split("\t")
    socket = folder / "gcloud.socket"
    client = folder / "bin" / "gcloud"
    client.parent.mkdir()
    client.write_text(_CLIENT.format(python=sys.executable, socket=str(socket)))
    client.chmod(0o755)
    command: list[str | Path] = [python, _SERVER, sdk_root, socket]
    with running(command, ready=socket.exists, env=environment, cwd=folder, limit=60):
        yield str(client.parent)
