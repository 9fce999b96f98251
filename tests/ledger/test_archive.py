"""The methods of both ledgers for the operator's commands: finding records and repairing them."""

from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from google.cloud.firestore_v1.types import StructuredQuery

import relay.ledger.firestore_calls
import relay.ledger.sqlite
from relay.ledger import Archive, ClaimLost, Duplicate, Ledger, Record, State, key_of
from tests.ledger.events import claimed, delivered, event
from tests.ledger.indexes import why_unserved
from tests.ledger.ledgers import Open

SOME_TIME = datetime(2000, 1, 1, tzinfo=UTC)


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of three, so that a test reads over several pages."""
    monkeypatch.setattr(relay.ledger.firestore_calls, "_PAGE", 3)
    monkeypatch.setattr(relay.ledger.sqlite, "_PAGE", 3)


async def record_of(ledger: Ledger, event_id: str = "evt_1") -> Record:
    """An event's record, which must exist."""
    record = await ledger.record(key_of("acme", event_id))
    assert record is not None
    return record


async def ids(records: AsyncIterator[Record]) -> list[str]:
    """The event ids of these records."""
    return [record.event_id async for record in records]


async def seven(ledger: Archive) -> list[Record]:
    """Make seven records in all states. Returns them in the order in which they were touched.

    No two are touched at the same time, although the emulator's clock counts milliseconds.
    """
    records = []
    for number in range(7):
        claim = await claimed(ledger, event(f"evt_{number}"))
        if number % 3 == 1:
            await ledger.release(claim)
        elif number % 3 == 2:
            await ledger.complete(claim, "msg_1", fanout_confirmed=True)
        records.append(await record_of(ledger, f"evt_{number}"))
        while (await record_of(ledger, f"evt_{number}")).read_at <= records[-1].touched_at:
            pass
    return records


@pytest.mark.usefixtures("small_pages")
async def test_undelivered_records_of_any_age_are_found(open_ledger: Open) -> None:
    """The record that was touched longest ago comes first. Each record is complete."""
    ledger = open_ledger()
    assert await ids(ledger.undelivered()) == []
    records = await seven(ledger)
    found = [record async for record in ledger.undelivered()]
    assert [record.event_id for record in found] == ["evt_0", "evt_1", "evt_3", "evt_4", "evt_6"]
    for record, again in zip((records[n] for n in (0, 1, 3, 4, 6)), found, strict=True):
        assert record.touched_at == again.touched_at
        assert again.read_at >= again.touched_at
        assert (record.state, record.lease, record.claim) == (again.state, again.lease, again.claim)
    # A record that is delivered while the rest is read is left out. One that is written meanwhile
    # moves to the end.
    reading = ledger.undelivered()
    assert (await anext(reading)).event_id == "evt_0"
    await ledger.repair(records[1], State.RELEASED)
    await ledger.repair(records[4], State.DELIVERED, "msg_1", fanout_confirmed=False)
    rest = await ids(reading)
    # The first page was read before the changes.
    assert rest == ["evt_1", "evt_3", "evt_6", "evt_1"]


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("since", [0, 3, 6])
async def test_records_touched_since_a_time_are_found(open_ledger: Open, since: int) -> None:
    """Records of all states are found, in the order in which they were touched."""
    ledger = open_ledger()
    records = await seven(ledger)
    touched = ledger.touched_since(records[since].touched_at)
    assert await ids(touched) == [f"evt_{number}" for number in range(since, 7)]
    assert await ids(ledger.touched_since(datetime.now(UTC) + timedelta(hours=1))) == []


async def test_a_settle_and_a_takeover_touch_a_record(open_ledger: Open) -> None:
    """Otherwise an event that was first claimed last week and settled today would be missed."""
    ledger = open_ledger()
    touched = []
    claim = await claimed(ledger, event())
    touched.append(await record_of(ledger))
    claim = await claimed(ledger, event(), await ledger.release(claim))
    touched.append(await record_of(ledger))
    await ledger.complete(claim, "msg_1", fanout_confirmed=False)
    touched.append(await record_of(ledger))
    await ledger.repair(touched[-1], State.DELIVERED, "msg_1", fanout_confirmed=True)
    touched.append(await record_of(ledger))
    times = [record.touched_at for record in touched]
    assert times == sorted(set(times))
    assert len({record.first_claimed_at for record in touched}) == 1
    assert await ids(ledger.touched_since(times[-1])) == ["evt_1"]


async def test_only_the_records_found_are_read(
    open_ledger: Open, reads: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reconciliation is billed for the day that it checks, with at most a tenth on top."""
    monkeypatch.setattr(relay.ledger.firestore_calls, "_PAGE", 50)
    ledger = open_ledger()
    for number in range(20):
        await delivered(ledger, event(f"evt_old_{number}"))
    begin = datetime.now(UTC)
    for number in range(100):
        await delivered(ledger, event(f"evt_{number}"))
    for number in range(10):
        await claimed(ledger, event(f"evt_claimed_{number}"))
    reads.clear()
    assert len(await ids(ledger.touched_since(begin))) == 110
    assert len(await ids(ledger.undelivered())) == 10
    # This counts Firestore's documents. test_sqlite.py checks the indexes of SQLite.
    assert reads["documents"] <= 1.1 * 120


async def test_a_page_that_fails_is_read_again(
    open_ledger: Open, monkeypatch: pytest.MonkeyPatch, unstable: list[int]
) -> None:
    """A passing fault must not make a reconciliation start over."""
    monkeypatch.setattr("relay.ledger.patience._FIRST_PAUSE", 0.0)
    ledger = open_ledger()
    await seven(ledger)
    unstable.append(3)
    assert len(await ids(ledger.touched_since(SOME_TIME))) == 7
    assert unstable == [0]


async def test_a_record_that_has_not_changed_is_repaired(open_ledger: Open) -> None:
    """It is marked as delivered, because its worker could not write that."""
    ledger = open_ledger()
    claim = await claimed(ledger, event())
    await ledger.repair(await record_of(ledger), State.DELIVERED, "msg_1", fanout_confirmed=False)
    assert await ledger.claim(event()) == Duplicate("msg_1", payload_changed=False, attempts=1)
    assert (await record_of(ledger)).fanout_confirmed is False
    with pytest.raises(ClaimLost):
        await ledger.release(claim)


async def test_a_record_repaired_as_released_is_claimed_again(open_ledger: Open) -> None:
    """Its message is no longer in Svix. The message's id is kept until the next claim."""
    ledger = open_ledger()
    await delivered(ledger, event())
    await ledger.repair(await record_of(ledger), State.RELEASED, "msg_1")
    record = await record_of(ledger)
    assert (record.delivered_at, record.svix_message_id) == (None, "msg_1")
    assert record.fanout_confirmed is None
    assert (await claimed(ledger, event())).attempts == 2
    assert (await record_of(ledger)).svix_message_id is None


async def test_the_fanout_of_a_delivered_record_can_be_repaired(
    open_ledger: Open,
) -> None:
    """The time of delivery stays the same."""
    ledger = open_ledger()
    await ledger.complete(await claimed(ledger, event()), "msg_1", fanout_confirmed=False)
    before = await record_of(ledger)
    await ledger.repair(before, State.DELIVERED, "msg_1", fanout_confirmed=True)
    after = await record_of(ledger)
    assert (after.state, after.fanout_confirmed) == (State.DELIVERED, True)
    assert after.delivered_at == before.delivered_at


async def test_a_record_written_since_it_was_read_is_not_repaired(open_ledger: Open) -> None:
    """The later write knows more than the command does."""
    ledger = open_ledger()
    first = await claimed(ledger, event())
    as_claimed = await record_of(ledger)
    await ledger.release(first)
    as_released = await record_of(ledger)
    second = await claimed(ledger, event())
    for stale in (as_claimed, as_released):
        with pytest.raises(ClaimLost):
            await ledger.repair(stale, State.DELIVERED, "msg_2", fanout_confirmed=True)
    await ledger.complete(second, "msg_1", fanout_confirmed=True)
    assert await ledger.claim(event()) == Duplicate("msg_1", payload_changed=False, attempts=2)
    as_delivered = await record_of(ledger)
    await ledger.repair(as_delivered, State.RELEASED)
    with pytest.raises(ClaimLost):
        await ledger.repair(as_delivered, State.DELIVERED, "msg_1", fanout_confirmed=True)


def test_a_query_without_an_index_is_noticed() -> None:
    """The check of the queries notices an order, a field or a collection without an index."""
    order: dict[str, object] = {"field": {"field_path": "touched_at"}}

    def query(collection: str, *orders: dict[str, object], **equal: str) -> StructuredQuery:
        filters = [
            {
                "field_filter": {
                    "field": {"field_path": f},
                    "op": "EQUAL",
                    "value": {"string_value": v},
                }
            }
            for f, v in equal.items()
        ]
        where = {"composite_filter": {"op": "AND", "filters": filters}}
        return StructuredQuery(
            {"from_": [{"collection_id": collection}], "order_by": list(orders), "where": where}
        )

    assert why_unserved(query("events", order, state="claimed", shard="1")) is None
    assert why_unserved(query("dead_letters", project="acme", event_id="evt_1")) is None
    descending = order | {"direction": "DESCENDING"}
    for unserved in (
        query("events", order, state="claimed"),
        query("events", order),
        query("events", descending, state="claimed", shard="1"),
        query("events", project="acme"),
        query("dead_letters", order, project="acme"),
        query("dead_letter_parts", project="acme"),
    ):
        assert why_unserved(unserved) is not None
