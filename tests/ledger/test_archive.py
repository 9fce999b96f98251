"""What the operator's commands rely on, in both ledgers: looking into them, and mending."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

import relay.ledger.firestore
import relay.ledger.sqlite
from relay.ledger import Archive, ClaimLost, DeadLetter, Duplicate, State, key_of
from tests.ledger.events import claimed, event
from tests.ledger.ledgers import HOUR, MOMENT, Open

LETTER = DeadLetter(
    data=b'{"id": "evt_1"}',
    reason="rejected",
    detail="Svix: 422 body.payload",
    message_id="1",
    subscription="projects/p/subscriptions/relay",
    attributes='{"a": "b"}',
    project="acme",
    event_id="evt_1",
    event_type="user.created",
    svix_status=422,
)
KEY = key_of("acme", "evt_1")


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several pages of few, so that what is between two pages is seen."""
    monkeypatch.setattr(relay.ledger.firestore, "_PAGE", 3)
    monkeypatch.setattr(relay.ledger.sqlite, "_PAGE", 3)


async def ids(ledger: Archive, prefix: str = "", **where: str) -> list[str]:
    """The ids of the dead letters listed."""
    return [letter_id async for letter_id, _ in ledger.dead_letters(prefix, **where)]


async def test_a_record_says_where_its_event_stands(open_ledger: Open) -> None:
    ledger = open_ledger(HOUR)
    assert await ledger.record(KEY) is None
    claim = await claimed(ledger, event())
    record = await ledger.record(KEY)
    assert record is not None
    assert record.state is State.CLAIMED
    assert HOUR - timedelta(minutes=1) < record.lease_left(HOUR) <= HOUR
    assert abs(datetime.now(UTC) - record.read_at) < timedelta(minutes=1)
    await ledger.complete(claim, "msg_1")
    record = await ledger.record(KEY)
    assert record is not None
    assert (record.state, record.svix_message_id) == (State.DELIVERED, "msg_1")
    assert record.delivered_at is not None
    assert record.lease_left(HOUR) <= timedelta(0)


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("count", [0, 2, 3, 7])
async def test_all_records_are_read_each_once(open_ledger: Open, count: int) -> None:
    ledger = open_ledger(HOUR)
    for number in range(count):
        await claimed(ledger, event(f"evt_{number}"))
    keys = [record.key async for record in ledger.records()]
    assert keys == sorted(key_of("acme", f"evt_{number}") for number in range(count))
    assert await ledger.count() == count


async def test_a_record_that_nobody_touched_is_mended(open_ledger: Open) -> None:
    ledger = open_ledger(MOMENT)
    claim = await claimed(ledger, event())
    record = await ledger.record(KEY)
    assert record is not None
    await ledger.mend(record, State.DELIVERED, "msg_1")
    assert await ledger.claim(event()) == Duplicate("msg_1", payload_changed=False, attempts=1)
    with pytest.raises(ClaimLost):
        await ledger.release(claim)


async def test_a_record_mended_as_released_is_claimed_again(open_ledger: Open) -> None:
    ledger = open_ledger(HOUR)
    await ledger.complete(await claimed(ledger, event()), "msg_1")
    record = await ledger.record(KEY)
    assert record is not None
    await ledger.mend(record, State.RELEASED)
    again = await claimed(ledger, event())
    assert again.attempts == 2
    record = await ledger.record(KEY)
    assert record is not None
    assert (record.delivered_at, record.svix_message_id) == (None, None)


async def test_a_record_written_since_it_was_read_is_not_mended(open_ledger: Open) -> None:
    ledger = open_ledger(HOUR)
    first = await claimed(ledger, event())
    as_claimed = await ledger.record(KEY)
    await ledger.release(first)
    as_released = await ledger.record(KEY)
    second = await claimed(ledger, event())
    for stale in (as_claimed, as_released):
        assert stale is not None
        with pytest.raises(ClaimLost):
            await ledger.mend(stale, State.DELIVERED, "msg_2")
    await ledger.complete(second, "msg_1")
    assert await ledger.claim(event()) == Duplicate("msg_1", payload_changed=False, attempts=2)


async def test_a_letter_comes_back_as_it_was_parked(open_ledger: Open) -> None:
    ledger = open_ledger(HOUR)
    await ledger.park(LETTER)
    letter = await ledger.dead_letter(LETTER.id)
    assert letter is not None
    assert letter.parked_at is not None
    assert abs(datetime.now(UTC) - letter.parked_at) < timedelta(minutes=1)
    assert replace(letter, parked_at=None) == LETTER
    assert await ledger.dead_letter("0" * 64) is None


@pytest.mark.usefixtures("small_pages")
async def test_letters_are_listed_without_what_they_carry(open_ledger: Open) -> None:
    ledger = open_ledger(HOUR)
    parked = [replace(LETTER, message_id=str(n), event_id=f"evt_{n % 2}") for n in range(7)]
    parked.append(replace(LETTER, message_id="other", project="zeta"))
    for letter in parked:
        await ledger.park(letter)
    listed = {letter_id: letter async for letter_id, letter in ledger.dead_letters()}
    assert list(listed) == sorted(letter.id for letter in parked)
    assert {(letter.data, letter.attributes) for letter in listed.values()} == {(b"", "{}")}
    assert listed[parked[0].id].detail == LETTER.detail
    assert await ids(ledger, project="zeta") == [parked[-1].id]
    odd = sorted(letter.id for letter in parked[:7] if letter.event_id == "evt_1")
    assert await ids(ledger, project="acme", event_id="evt_1") == odd


async def test_letters_are_found_by_the_beginning_of_their_id(open_ledger: Open) -> None:
    ledger = open_ledger(HOUR)
    parked = [replace(LETTER, message_id=str(n)) for n in range(20)]
    for letter in parked:
        await ledger.park(letter)
    prefix = parked[7].id[:1]
    beginning_so = sorted(letter.id for letter in parked if letter.id.startswith(prefix))
    assert await ids(ledger, prefix) == beginning_so
    assert await ids(ledger, parked[7].id) == [parked[7].id]


async def test_a_letter_is_restated_and_removed(open_ledger: Open) -> None:
    ledger = open_ledger(HOUR)
    await ledger.park(LETTER)
    parked = await ledger.dead_letter(LETTER.id)
    assert parked is not None
    discarded = replace(parked, data=b"", attributes="{}", detail="new", discarded="a test's")
    await ledger.restate(LETTER.id, discarded)
    assert await ledger.dead_letter(LETTER.id) == discarded
    # The same push, come again, does not undo what the operator decided.
    await ledger.park(LETTER)
    assert await ledger.dead_letter(LETTER.id) == discarded
    await ledger.remove(LETTER.id)
    await ledger.remove(LETTER.id)
    assert await ids(ledger) == []
    await ledger.restate(LETTER.id, discarded)
    assert await ids(ledger) == []
