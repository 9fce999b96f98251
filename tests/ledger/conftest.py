"""The fixtures of the ledgers' suites."""

from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.api_core.exceptions import ServiceUnavailable
from google.cloud.firestore_v1.services.firestore import FirestoreAsyncClient
from google.cloud.firestore_v1.types import BatchWriteRequest, RunQueryRequest

from relay.ledger import LEASE_SECONDS, Archive, LedgerUnavailable
from relay.ledger.firestore import FirestoreLedger
from relay.ledger.sqlite import SqliteLedger
from tests.ledger.indexes import why_unserved
from tests.ledger.ledgers import Open

_OWNER = (("authorization", "Bearer owner"),)  # as Google's library sends it to an emulator


@pytest.fixture(scope="session")
def warm_emulator(firestore_emulator: str) -> str:
    """The address of an emulator that has already answered calls.

    On a busy machine its first answers take seconds.
    """
    with grpc.insecure_channel(firestore_emulator) as channel:
        write = channel.unary_unary("/google.firestore.v1.Firestore/BatchWrite")
        name = "projects/warm-up/databases/(default)"
        document = {"update": {"name": f"{name}/documents/events/1"}}
        request = BatchWriteRequest(database=name, writes=[document])
        for _ in range(20):
            write(BatchWriteRequest.serialize(request), timeout=60, metadata=_OWNER)
    return firestore_emulator


@pytest.fixture
async def connect(
    google_project: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[[str], FirestoreLedger]]:
    """A function that opens a ledger on the Firestore at an address, in this test's project."""
    opened = []

    def connect_to(address: str) -> FirestoreLedger:
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", address)
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", google_project)
        opened.append(FirestoreLedger.connect(google_project, "(default)"))
        return opened[-1]

    yield connect_to
    for ledger in opened:
        await ledger.close()


@pytest.fixture(params=["firestore", "sqlite"])
async def open_ledger(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Open]:
    """A function that opens either ledger, empty at first. Firestore's queries must be indexed."""
    opened: list[Archive] = []
    if request.param == "firestore":
        address = request.getfixturevalue("warm_emulator")
        request.getfixturevalue("only_indexed_queries")
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", address)
        project = request.getfixturevalue("google_project")

    def open_one(lease: float = LEASE_SECONDS) -> Archive:
        ledger: Archive
        if request.param == "firestore":
            ledger = FirestoreLedger.connect(project, "(default)", lease=lease)
        else:
            ledger = SqliteLedger(tmp_path / "ledger.db", create=True, lease=lease)
        opened.append(ledger)
        return ledger

    yield open_one
    for ledger in opened:
        await ledger.close()


@pytest.fixture
def only_indexed_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if a query can't be served by Firestore's indexes."""
    run_query = FirestoreAsyncClient.run_query

    def checked(self: FirestoreAsyncClient, request: Any, **options: Any) -> Any:
        query = RunQueryRequest(request).structured_query
        assert why_unserved(query) is None
        return run_query(self, request, **options)

    monkeypatch.setattr(FirestoreAsyncClient, "run_query", checked)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the `documents` that Firestore's queries return. Each is billed as a read."""
    counted: Counter[str] = Counter()
    run_query = FirestoreAsyncClient.run_query

    async def counting(self: FirestoreAsyncClient, request: Any, **options: Any) -> Any:
        answers = await run_query(self, request, **options)

        async def stream() -> AsyncIterator[Any]:
            async for answer in answers:
                counted["documents"] += "document" in answer
                yield answer

        return stream()

    monkeypatch.setattr(FirestoreAsyncClient, "run_query", counting)
    return counted


@pytest.fixture
def unstable(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list in which a test puts the number of pages that fail, in either ledger."""
    to_fail: list[int] = []
    run_query, rows = FirestoreAsyncClient.run_query, SqliteLedger._rows

    def fails() -> bool:
        if not to_fail or not to_fail[0]:
            return False
        to_fail[0] -= 1
        return True

    def failing_query(self: FirestoreAsyncClient, request: Any, **options: Any) -> Any:
        if fails():
            raise ServiceUnavailable("down")  # type: ignore[no-untyped-call] # published so
        return run_query(self, request, **options)

    async def failing_rows(self: SqliteLedger, *arguments: Any) -> Any:
        if fails():
            raise LedgerUnavailable("locked")
        return await rows(self, *arguments)

    monkeypatch.setattr(FirestoreAsyncClient, "run_query", failing_query)
    monkeypatch.setattr(SqliteLedger, "_rows", failing_rows)
    return to_fail
