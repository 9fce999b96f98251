"""Google's own emulators of Firestore and Pub/Sub, from the installed gcloud CLI.

Nothing is installed or configured here: `missing` says in words what a machine lacks.
https://cloud.google.com/sdk/gcloud/reference/beta/emulators
"""

import contextlib
import functools
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from local.processes import Server, free_port, listening, running

_FIRESTORE = Path("platform/cloud-firestore-emulator/cloud_firestore_emulator")
_PUBSUB = Path("platform/pubsub-emulator/bin/cloud-pubsub-emulator")

_START_SECONDS = 60.0  # about 5 s of Java start on an idle machine


def missing() -> str | None:
    """What this machine lacks to run the emulators, and how to get it; None if nothing."""
    root = _sdk_root()
    if root is None:
        return "gcloud is missing: https://cloud.google.com/sdk/docs/install"
    for program, component in (
        (_FIRESTORE, "cloud-firestore-emulator"),
        (_PUBSUB, "pubsub-emulator"),
    ):
        if not (root / program).exists():
            return f"an emulator is missing: gcloud components install {component}"
    if shutil.which("java") is None:
        return "Java is missing: version 11 or newer"
    return None


@contextlib.contextmanager
def firestore_emulator() -> Iterator[tuple[str, Server]]:
    """The address (`host:port`, as FIRESTORE_EMULATOR_HOST wants it) and the process."""
    port = free_port()
    with _emulator(_FIRESTORE, "start", port=port, ready=_writes(port)) as started:
        yield started


@contextlib.contextmanager
def pubsub_emulator() -> Iterator[tuple[str, Server]]:
    """The address (`host:port`, as PUBSUB_EMULATOR_HOST wants it) and the process."""
    port = free_port()
    with _emulator(_PUBSUB, port=port, ready=listening(port)) as started:
        yield started


@contextlib.contextmanager
def _emulator(
    program: Path, *arguments: str, port: int, ready: Callable[[], bool]
) -> Iterator[tuple[str, Server]]:
    root = _sdk_root()
    if root is None:
        raise FileNotFoundError(missing())
    command = [str(root / program), *arguments, "--host=127.0.0.1", f"--port={port}"]
    with running(command, ready=ready, limit=_START_SECONDS) as server:
        yield f"127.0.0.1:{port}", server


def _writes(port: int) -> Callable[[], bool]:
    """A probe: whether Firestore has taken a write.

    The first one takes its Java seconds on a busy machine, more than a ledger call may take.
    """
    url = f"http://127.0.0.1:{port}/v1/projects/started/databases/(default)/documents/first"

    def probe() -> bool:
        with contextlib.suppress(httpx.ConnectError):
            return httpx.post(url, json={}, timeout=_START_SECONDS).is_success
        return False

    return probe


@functools.cache
def _sdk_root() -> Path | None:
    """The CLI's own directory, which holds its components."""
    gcloud = shutil.which("gcloud")
    if gcloud is None:
        return None
    root = Path(gcloud).resolve().parent.parent
    if (root / "platform").is_dir():
        return root
    # A wrapper (snap, Homebrew): it must say so itself, which takes it a second.
    asked = subprocess.run(  # noqa: S603 - the resolved gcloud, fixed arguments
        [gcloud, "info", "--format=value(installation.sdk_root)"],
        capture_output=True,
        text=True,
        check=False,
    )
    return Path(asked.stdout.strip()) if asked.returncode == 0 else None
