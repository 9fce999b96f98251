"""A letter that Firestore stores in parts, with a crash after each of its writes."""

import random
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from google.cloud.firestore import AsyncClient
from google.cloud.firestore_v1.services.firestore import FirestoreAsyncClient

from relay.ledger import DEAD_LETTER_LIFETIME, LetterDamaged
from relay.ledger.firestore import FirestoreLedger
from tests.ledger.events import letter

PARTS = 4
LETTER = letter(data=random.Random(2).randbytes(3_500))  # noqa: S311 - no secret


class Died(BaseException):
    """Simulates a crash: no handler catches it."""


@pytest.fixture
async def opened(
    connect: Callable[[str], FirestoreLedger], warm_emulator: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[FirestoreLedger, AsyncClient]]:
    """A ledger with parts of a kilobyte, and a client that reads its database."""
    monkeypatch.setattr("relay.ledger.firestore_letters.PART_BYTES", 1_000)
    ledger = connect(warm_emulator)
    client = AsyncClient()
    yield ledger, client
    await client._firestore_api.transport.close()


async def parts(client: AsyncClient) -> list[str]:
    """The ids of the stored parts."""
    return [document.id async for document in client.collection("dead_letter_parts").stream()]


def die(monkeypatch: pytest.MonkeyPatch, after: int) -> list[str]:
    """Let the process die after this many writes. Returns a list of the documents written."""
    written: list[str] = []
    commit = FirestoreAsyncClient.commit

    async def dying(self: FirestoreAsyncClient, request: Any, **options: Any) -> Any:
        if len(written) == after:
            raise Died
        (write,) = request["writes"]
        written.append(write.delete or write.update.name)
        return await commit(self, request, **options)

    monkeypatch.setattr(FirestoreAsyncClient, "commit", dying)
    return written


@pytest.mark.parametrize("written", range(PARTS + 2))
async def test_a_letter_is_parked_by_its_last_write(
    opened: tuple[FirestoreLedger, AsyncClient], monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """After a crash before the last write, no letter is parked.

    Parking it again succeeds.
    """
    ledger, client = opened
    with monkeypatch.context() as dying:
        writes = die(dying, written)
        if written <= PARTS:
            with pytest.raises(Died):
                await ledger.park(LETTER)
        else:
            await ledger.park(LETTER)
    assert ["dead_letters/" in write for write in writes] == [
        n == PARTS for n in range(len(writes))
    ]
    assert (await ledger.dead_letter(LETTER.id) is not None) is (written > PARTS)
    await ledger.park(LETTER)
    stored = await ledger.dead_letter(LETTER.id)
    assert stored is not None
    assert replace(stored, parked_at=None) == LETTER
    assert len(await parts(client)) == PARTS


@pytest.mark.parametrize("discard", [True, False])
@pytest.mark.parametrize("written", range(PARTS + 1))
async def test_a_letter_is_deleted_or_discarded_by_its_first_write(
    opened: tuple[FirestoreLedger, AsyncClient],
    monkeypatch: pytest.MonkeyPatch,
    written: int,
    *,
    discard: bool,
) -> None:
    """After a crash that follows the first write, the payload can't be read any more.

    Repeating the call erases the other parts.
    """
    ledger, client = opened
    await ledger.park(LETTER)

    async def give_up() -> None:
        if discard:
            await ledger.discard_dead_letter(LETTER.id, "a test's")
        else:
            await ledger.delete_dead_letter(LETTER.id)

    with monkeypatch.context() as dying:
        writes = die(dying, written)
        with pytest.raises(Died):
            await give_up()
    assert ["dead_letters/" in write for write in writes] == [n == 0 for n in range(len(writes))]
    stored = await ledger.dead_letter(LETTER.id)
    if not written:
        assert stored is not None
        assert stored.data == LETTER.data
    else:
        assert (stored is not None) is discard
        assert stored is None or stored.data == b""
    await give_up()
    assert await parts(client) == []


async def test_parts_outlive_their_letter(
    opened: tuple[FirestoreLedger, AsyncClient],
) -> None:
    """Parts expire as well, but not before their letter."""
    ledger, client = opened
    await ledger.park(LETTER)
    stored = (await client.document(f"dead_letters/{LETTER.id}").get()).to_dict()
    assert stored is not None
    assert stored["expires_at"] - stored["parked_at"] < 1.01 * DEAD_LETTER_LIFETIME
    async for part in client.collection("dead_letter_parts").stream():
        assert part.get("expires_at") > stored["expires_at"]


async def test_a_missing_part_is_named(
    opened: tuple[FirestoreLedger, AsyncClient],
) -> None:
    """A person can then look for it. Half a letter must not be returned."""
    ledger, client = opened
    await ledger.park(LETTER)
    missing = sorted(await parts(client))[2]
    await client.document(f"dead_letter_parts/{missing}").delete()
    with pytest.raises(LetterDamaged) as damaged:
        await ledger.dead_letter(LETTER.id)
    assert f"part 3 of {PARTS} is missing: dead_letter_parts/{missing}" in str(damaged.value)
    await ledger.discard_dead_letter(LETTER.id, "damaged")


async def test_a_changed_part_is_an_error(
    opened: tuple[FirestoreLedger, AsyncClient],
) -> None:
    """All parts are there, but their content is not what was stored."""
    ledger, client = opened
    await ledger.park(LETTER)
    one = sorted(await parts(client))[2]
    await client.document(f"dead_letter_parts/{one}").update({"content": b"x" * 1000})
    with pytest.raises(LetterDamaged, match="not what was stored"):
        await ledger.dead_letter(LETTER.id)


async def test_a_letter_that_is_deleted_while_it_is_read_is_missing(
    opened: tuple[FirestoreLedger, AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not reported as damaged: it was replayed meanwhile."""
    ledger, _ = opened
    await ledger.park(LETTER)
    letters = ledger._letters
    read_parts = letters._read_parts

    async def too_late(*asked: Any) -> bytes:
        await ledger.delete_dead_letter(LETTER.id)
        return await read_parts(*asked)

    monkeypatch.setattr(letters, "_read_parts", too_late)
    assert await ledger.dead_letter(LETTER.id) is None


async def test_a_letter_that_is_discarded_while_it_is_parked_again_stays_erased(
    opened: tuple[FirestoreLedger, AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second push has already written its parts. They are erased as well."""
    ledger, client = opened
    letters = ledger._letters
    create = letters._create

    async def overtaken(*asked: Any) -> bool:
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(letters, "_create", create)
            await ledger.park(LETTER)
            await ledger.discard_dead_letter(LETTER.id, "a test's")
            await letters._store_parts(LETTER.id, b"as it was" * 1000)
        return await create(*asked)

    with monkeypatch.context() as parking:
        parking.setattr(letters, "_create", overtaken)
        await ledger.park(LETTER)
    stored = await ledger.dead_letter(LETTER.id)
    assert stored is not None
    assert stored.discarded == "a test's"
    assert await parts(client) == []
    # A later push writes no parts at all.
    await ledger.park(LETTER)
    assert await parts(client) == []
