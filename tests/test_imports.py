"""The import budget: which modules the relay must not load.

Each import costs time in every cold start, and memory. The relay's modules are imported with
`main`, before the server forks its worker. Each test reads `sys.modules` of a process of its own.
"""

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

from bench.functions import TOKEN, simulator

ROOT = Path(__file__).parent.parent

NEVER = {
    # modules of this repository
    "bench",
    "local",
    "tests",
    # tools for its development
    "hypothesis",
    "matplotlib",
    "psutil",
    "pytest",
    # heavy, and imported by optional parts of the packages that the relay uses
    "grpc_tools",
    "numpy",
    "pandas",
    "google.cloud.firestore_admin_v1",
    "google.api_core.operations_v1",
    # needed by the SDK's own client only, which the relay replaces
    "aiohttp",
    "h2",
    "httpcore",
}
FIRESTORE = {"google.cloud.firestore", "google.cloud.firestore_v1", "google.auth", "grpc", "proto"}
SQLITE = {"sqlite3"}

SCRIPT = """
import asyncio, json, sys
from starlette.requests import Request
import main

before = sorted(sys.modules)

async def post():
    message = {"type": "http.request", "body": sys.argv[1].encode(), "more_body": False}
    async def receive():
        return message
    scope = {"type": "http", "method": "POST", "path": "/notifications", "query_string": b"",
             "server": ("127.0.0.1", 80), "scheme": "http",
             "headers": [(b"content-type", b"application/json")]}
    answer = await main.notifications(Request(scope, receive))
    assert answer.status_code == 200, answer.body

asyncio.run(post())
print(json.dumps([before, sorted(sys.modules)]))
"""
EVENT = {"id": "evt_1", "type": "user.created", "project": "acme", "data": {}}


def loaded(**settings: str) -> tuple[set[str], set[str]]:
    """The modules that are loaded with `main`, and those that are loaded after a delivery."""
    with simulator() as svix_url:
        outcome = subprocess.run(  # noqa: S603 - this Python, a script from above
            [sys.executable, "-c", SCRIPT, json.dumps(EVENT)],
            cwd=ROOT,
            env={**os.environ, "SVIX_TOKEN": TOKEN, "SVIX_SERVER_URL": svix_url, **settings},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert outcome.returncode == 0, outcome.stderr
    before, after = json.loads(outcome.stdout.splitlines()[-1])
    return set(before), set(after)


def test_with_sqlite_nothing_of_google_is_loaded(tmp_path: Path) -> None:
    """Neither importing `main` nor a delivery loads a module of Google or of `NEVER`."""
    before, after = loaded(LEDGER=f"sqlite:{tmp_path / 'ledger.db'}")
    assert not (NEVER | FIRESTORE) & before
    assert not (NEVER | FIRESTORE) & after
    assert SQLITE <= after


def test_with_firestore_sqlite_is_not_loaded(firestore_emulator: str) -> None:
    """Neither importing `main` nor a delivery loads `sqlite3` or a module of `NEVER`."""
    before, after = loaded(
        FIRESTORE_EMULATOR_HOST=firestore_emulator,
        GOOGLE_CLOUD_PROJECT=f"imports-{uuid.uuid4().hex[:8]}",
    )
    assert not (NEVER | SQLITE) & before
    assert not (NEVER | SQLITE) & after
    assert FIRESTORE <= after
