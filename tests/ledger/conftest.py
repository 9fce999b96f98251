"""Both ledgers, as their suites open them."""

import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from relay.ledger import Archive
from relay.ledger.firestore import FirestoreLedger
from relay.ledger.sqlite import SqliteLedger
from tests.ledger.ledgers import Open


@pytest.fixture(params=["firestore", "sqlite"])
async def open_ledger(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Open]:
    """Opens either ledger, empty at first."""
    opened: list[Archive] = []
    if request.param == "firestore":
        address = request.getfixturevalue("firestore_emulator")
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", address)
        project = f"test-{uuid.uuid4().hex[:12]}"

    def open_one(lease: timedelta) -> Archive:
        ledger: Archive
        if request.param == "firestore":
            ledger = FirestoreLedger.connect(project, "(default)", lease)
        else:
            ledger = SqliteLedger(tmp_path / "ledger.db", lease)
        opened.append(ledger)
        return ledger

    yield open_one
    for ledger in opened:
        await ledger.close()
