"""Only the function is uploaded, and it runs without the rest of the repository.

The list of files is gcloud's own. The environment is made from the bundle's requirements only. uv
makes it, because pip takes half a minute; both check the hashes.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from uv import find_uv_bin

from local.processes import free_port, listening, running
from tests.deploy.gcloud import isolated, require_gcloud
from tests.function import JSON, ROOT, TOKEN, event, simulator, wrapped


@pytest.fixture(scope="module")
def uploaded(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The paths that gcloud would upload, by its own list."""
    listed = subprocess.run(  # noqa: S603 - our own command
        [require_gcloud(), "meta", "list-files-for-upload", str(ROOT)],
        env=os.environ | isolated(tmp_path_factory.mktemp("gcloud")),
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return listed.stdout.splitlines()


@pytest.fixture(scope="module")
def bundle(uploaded: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with exactly these files."""
    directory = tmp_path_factory.mktemp("bundle")
    for name in uploaded:
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    return directory


def test_the_function_is_uploaded_and_nothing_else(uploaded: list[str]) -> None:
    """The upload holds the entry point, the locked requirements and the package's source."""
    source = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("relay/**/*.py")}
    assert "relay/ledger/firestore.py" in source
    assert sorted(uploaded) == sorted({"main.py", "requirements.txt"} | source)


def test_the_bundle_installs_by_itself_and_delivers_a_push(bundle: Path, tmp_path: Path) -> None:
    """Its requirements install into a fresh environment, and it delivers an event to Svix."""
    environment = tmp_path / "venv"
    install = ["pip", "install", "--quiet", "--python", str(environment), "--require-hashes"]
    for command in (
        ["venv", "--quiet", "--python", sys.executable, str(environment)],
        [*install, "-r", str(bundle / "requirements.txt")],
    ):
        made = subprocess.run(  # noqa: S603 - our own command
            [find_uv_bin(), *command],
            env=os.environ | {"UV_CACHE_DIR": str(tmp_path / "uv")},
            check=False,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert made.returncode == 0, made.stdout + made.stderr
    port = free_port()
    framework = environment / "bin" / "functions-framework"
    serve: list[str | Path] = [framework, "--target", "notifications"]
    serve += ["--host", "127.0.0.1", "--port", str(port)]
    with simulator() as svix:
        settings = {
            "SVIX_TOKEN": TOKEN,
            "SVIX_SERVER_URL": svix.url,
            "LEDGER": f"sqlite:{tmp_path}/ledger.db",
            "PYTHONPATH": "",  # only the bundle, nothing else of this repository
            "PYTHONNOUSERSITE": "1",
        }
        with running(serve, ready=listening(port), env=settings, cwd=bundle, limit=60):
            answer = httpx.post(
                f"http://127.0.0.1:{port}/notifications",
                content=wrapped(json.dumps(event("evt_bundle")).encode(), "1"),
                headers=JSON,
                timeout=60,
            )
        assert (answer.status_code, answer.json()["outcome"]) == (200, "delivered")
        assert [message["event_id"] for message in svix.control.messages()] == ["evt_bundle"]
