"""Starts the function and the Svix simulator as processes, and makes events and pushes.

The suites that run on real servers use it.
"""

import base64
import contextlib
import json
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local.control import Control
from local.processes import Server, free_port, listening, running

ROOT = Path(__file__).parent.parent
TOKEN = "testsk_9f8e7d6c5b4a"
JSON = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True)
class Svix:
    """A running simulator."""

    url: str
    control: Control


@dataclass(frozen=True, slots=True)
class Function:
    """A running function."""

    url: str
    server: Server

    @property
    def notifications(self) -> str:
        """The URL for events."""
        return f"{self.url}/notifications"

    def lines(self) -> list[dict[str, Any]]:
        """The JSON lines of the log so far, without the server's other output."""
        whole = self.server.output().rpartition("\n")[0]  # the last line may be incomplete
        return [json.loads(line) for line in whole.splitlines() if line.startswith('{"severity"')]


@contextlib.contextmanager
def simulator(*arguments: str) -> Iterator[Svix]:
    """Start the Svix simulator with these command-line arguments."""
    command = [sys.executable, "-m", "local.simulator", "--port", "0", "--token", TOKEN]
    with running([*command, *arguments], ready="Svix simulator on", cwd=ROOT) as server:
        url = server.ready_line.split()[-1]
        control = Control(url)
        try:
            yield Svix(url, control)
        finally:
            control.close()


@contextlib.contextmanager
def function(
    svix_url: str, source: Path = ROOT / "main.py", /, **environment: str
) -> Iterator[Function]:
    """Start the function as Cloud Run serves it. `environment` holds its other settings."""
    port = free_port()
    command = [sys.executable, "-m", "functions_framework", "--target", "notifications"]
    command += ["--source", str(source), "--host", "127.0.0.1", "--port", str(port)]
    settings = {"SVIX_TOKEN": TOKEN, "SVIX_SERVER_URL": svix_url, **environment}
    with running(command, ready=listening(port), env=settings, cwd=ROOT) as server:
        yield Function(f"http://127.0.0.1:{port}", server)


@contextlib.contextmanager
def function_on_sqlite(svix: Svix, /, **environment: str) -> Iterator[Function]:
    """Start the function with a SQLite ledger of its own."""
    with tempfile.TemporaryDirectory() as directory:
        ledger = f"sqlite:{directory}/ledger.db"
        with function(svix.url, LEDGER=ledger, **environment) as started:
            yield started


def new_google_project() -> str:
    """The id of a Google project that no other test uses: a namespace in a shared emulator."""
    return f"test-{uuid.uuid4().hex[:12]}"


def event(event_id: str, **more: Any) -> dict[str, Any]:
    """An event of the platform; `more` replaces and adds fields."""
    return {"id": event_id, "type": "user.created", "project": "acme", "data": {}, **more}


def wrapped(body: bytes, message_id: str, **more: Any) -> bytes:
    """A wrapped push of these bytes. `more` is added beside `message`."""
    message = {"data": base64.b64encode(body).decode(), "messageId": message_id}
    subscription = "projects/local/subscriptions/relay"
    return json.dumps({"message": message, "subscription": subscription, **more}).encode()
