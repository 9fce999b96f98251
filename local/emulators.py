"""Google's own emulators of Firestore and Pub/Sub, from the installed gcloud CLI.

Installs and configures nothing. `missing` says what the machine lacks.
https://cloud.google.com/sdk/gcloud/reference/beta/emulators
"""

import contextlib
import functools
import shutil
import subprocess
from collections.abc import Callable, Iterator
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path

from pyreqwest.client import SyncClientBuilder
from pyreqwest.exceptions import ConnectError

from local.processes import Server, free_port, listening, running

_FIRESTORE = Path("platform/cloud-firestore-emulator/cloud_firestore_emulator")
_PUBSUB = Path("platform/pubsub-emulator/bin/cloud-pubsub-emulator")

_START_SECONDS = (
    100.0  # Java starts in about 5 s on an idle machine, in ten times that on a busy one
)


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
    """Run Firestore's emulator. Yields `host:port`, as FIRESTORE_EMULATOR_HOST, and the process."""
    port = free_port()
    with _emulator(_FIRESTORE, "start", port=port, ready=_writes(port)) as started:
        yield started


@contextlib.contextmanager
def pubsub_emulator() -> Iterator[tuple[str, Server]]:
    """Run Pub/Sub's emulator. Yields `host:port`, for PUBSUB_EMULATOR_HOST, and its process."""
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
    """A probe for `running`: whether Firestore takes a write.

    On a busy machine the first write takes seconds, which is longer than a ledger call may take.
    """
    url = f"http://127.0.0.1:{port}/v1/projects/started/databases/(default)/documents/first"

    def probe() -> bool:
        limit = timedelta(seconds=_START_SECONDS)
        with SyncClientBuilder().no_proxy().timeout(limit).build() as client:
            with contextlib.suppress(ConnectError):
                answer = client.post(url).body_json({}).build().send()
                return answer.status == HTTPStatus.OK
            return False

    return probe


@functools.cache
def _sdk_root() -> Path | None:
    """The directory of the gcloud CLI, which holds its components."""
    gcloud = shutil.which("gcloud")
    if gcloud is None:
        return None
    root = Path(gcloud).resolve().parent.parent
    if (root / "platform").is_dir():
        return root
    # gcloud is a wrapper (snap, Homebrew). It prints its directory, which takes a second.
    asked = subprocess.run(  # noqa: S603 - the resolved gcloud, fixed arguments
        [gcloud, "info", "--format=value(installation.sdk_root)"],
        capture_output=True,
        text=True,
        check=False,
    )
    return Path(asked.stdout.strip()) if asked.returncode == 0 else None
