"""Dead letters in both ledgers: they are parked whole, found, replayed and discarded."""

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

import relay.ledger.firestore_calls
import relay.ledger.sqlite
from relay.envelope import Form, Names, Source
from relay.ledger import Archive, DeadLetter, LetterDamaged
from relay.ledger.content import pack, unpack
from relay.outcome import Outcome, Result
from tests.ledger.events import letter
from tests.ledger.ledgers import Open

LETTER = letter()
LARGEST = random.Random(1).randbytes(10_000_000)  # noqa: S311 - no secret
"""Pub/Sub's largest message, of bytes that do not compress."""


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of three, so that a test reads over several pages."""
    monkeypatch.setattr(relay.ledger.firestore_calls, "_PAGE", 3)
    monkeypatch.setattr(relay.ledger.sqlite, "_PAGE", 3)


async def ids(ledger: Archive, prefix: str = "", **where: str) -> list[str]:
    """The ids of the listed letters."""
    return [listed.id async for listed in ledger.dead_letters(prefix, **where)]


async def parked(ledger: Archive, what: DeadLetter = LETTER) -> DeadLetter:
    """Park a letter, and return it as it is stored."""
    await ledger.park(what)
    stored = await ledger.dead_letter(what.id)
    assert stored is not None
    return stored


@pytest.mark.parametrize(
    "what",
    [
        LETTER,
        replace(LETTER, data=b"", attributes="{}", detail=""),
        replace(LETTER, data=b"\xff\x00{", form=Form.BODY, svix_code="validation"),
        replace(LETTER, attributes='{"a": "' + "b" * 1_500_000 + '"}'),
        replace(LETTER, data=b"{" * 5_000_000, message_id=None, project=None, event_id=None),
    ],
    ids=["plain", "empty", "no text", "large attributes", "large but compressed"],
)
async def test_a_letter_is_stored_unchanged(open_ledger: Open, what: DeadLetter) -> None:
    """A replay must read exactly what Pub/Sub pushed."""
    stored = await parked(open_ledger(), what)
    assert stored.parked_at is not None
    assert abs(datetime.now(UTC) - stored.parked_at) < timedelta(minutes=1)
    assert replace(stored, parked_at=None) == what


async def test_the_largest_message_is_parked_whole(open_ledger: Open) -> None:
    """No message is nacked because of its size. A list does not read the payload."""
    ledger = open_ledger()
    what = letter(data=LARGEST)
    stored = await parked(ledger, what)
    assert stored.data == LARGEST
    (listed,) = [listed async for listed in ledger.dead_letters()]
    assert listed == replace(stored, data=b"", attributes="{}")
    await ledger.park(what)
    await ledger.delete_dead_letter(what.id)
    assert await ledger.dead_letter(what.id) is None


async def test_an_unknown_letter_is_none(open_ledger: Open) -> None:
    """A person may mistype an id."""
    assert await open_ledger().dead_letter("0" * 64) is None


@pytest.mark.usefixtures("small_pages")
async def test_letters_are_listed_without_their_payloads(open_ledger: Open) -> None:
    """They are listed by id, over several pages: all of them, a project's, or an event's."""
    ledger = open_ledger()
    letters = [replace(letter(str(n)), event_id=f"evt_{n % 2}") for n in range(7)]
    letters.append(replace(letter("other"), project="zeta"))
    for what in letters:
        await ledger.park(what)
    listed = [listed async for listed in ledger.dead_letters()]
    assert [each.id for each in listed] == sorted(what.id for what in letters)
    assert {(each.data, each.attributes) for each in listed} == {(b"", "{}")}
    assert {each.detail for each in listed} == {LETTER.detail}
    assert await ids(ledger, project="zeta") == [letters[-1].id]
    odd = sorted(what.id for what in letters[:7] if what.event_id == "evt_1")
    assert await ids(ledger, project="acme", event_id="evt_1") == odd


@pytest.mark.usefixtures("small_pages")
async def test_letters_are_found_by_a_prefix_of_their_id(open_ledger: Open) -> None:
    """A person types eight digits, not sixty-four."""
    ledger = open_ledger()
    letters = [letter(str(n)) for n in range(20)]
    for what in letters:
        await ledger.park(what)
    prefix = letters[7].id[:1]
    assert await ids(ledger, prefix) == sorted(
        what.id for what in letters if what.id.startswith(prefix)
    )
    assert await ids(ledger, letters[7].id, project="acme") == [letters[7].id]


async def test_a_letter_that_failed_again_says_why(open_ledger: Open) -> None:
    """After a replay that failed, the letter has the new reason. The payload stays."""
    ledger = open_ledger()
    before = await parked(ledger)
    after = replace(before, reason="conflict", detail="new", svix_status=409, svix_code="conflict")
    await ledger.update_dead_letter(replace(after, data=b"", project="other"))
    assert await ledger.dead_letter(LETTER.id) == after


async def test_a_discarded_letter_keeps_all_but_its_payload(open_ledger: Open) -> None:
    """It has the reason and the time. A second discard changes nothing."""
    ledger = open_ledger()
    before = await parked(ledger)
    await ledger.discard_dead_letter(LETTER.id, "a test's")
    after = await ledger.dead_letter(LETTER.id)
    assert after is not None
    assert after.discarded_at is not None
    assert before.parked_at is not None
    assert after.discarded_at > before.parked_at
    expected = replace(before, data=b"", attributes="{}", discarded="a test's")
    assert replace(after, discarded_at=None) == expected
    await ledger.discard_dead_letter(LETTER.id, "another")
    assert await ledger.dead_letter(LETTER.id) == after
    await ledger.discard_dead_letter("0" * 64, "not there")
    assert await ids(ledger) == [LETTER.id]


async def test_nothing_undoes_a_discard(open_ledger: Open) -> None:
    """Neither a redelivery of the push nor the end of a replay under way undoes it."""
    ledger = open_ledger()
    before = await parked(ledger)
    await ledger.discard_dead_letter(LETTER.id, "a test's")
    discarded = await ledger.dead_letter(LETTER.id)
    await ledger.park(LETTER)
    await ledger.update_dead_letter(replace(before, detail="refused again"))
    await ledger.delete_dead_letter(LETTER.id)
    assert await ledger.dead_letter(LETTER.id) == discarded


async def test_a_deleted_letter_is_gone(open_ledger: Open) -> None:
    """It can be deleted twice. A replay that ends later does not restore it."""
    ledger = open_ledger()
    before = await parked(ledger)
    await ledger.delete_dead_letter(LETTER.id)
    await ledger.delete_dead_letter(LETTER.id)
    await ledger.update_dead_letter(before)
    assert await ids(ledger) == []


def test_a_payload_that_cannot_be_unpacked_is_an_error_that_names_the_letter() -> None:
    """Half a payload must not be returned."""
    whole = pack(LETTER)
    assert unpack(LETTER.id, whole) == (LETTER.attributes, LETTER.data)
    with pytest.raises(LetterDamaged, match=LETTER.id):
        unpack(LETTER.id, whole[:-3])


REJECTED = Result(outcome=Outcome.REJECTED, detail="Svix: 422", svix_status=422, svix_code="v")
PUSH = Source(
    pushed=True,
    data=b"{}",
    form=Form.BODY,
    message_id="77",
    subscription="projects/p/subscriptions/relay",
    attributes={"a": "b"},
)


def test_a_letter_is_made_from_a_push_and_its_result() -> None:
    """It has the names that could be read, and what a replay needs."""
    made = DeadLetter.of(REJECTED, PUSH, Names("evt_1", None, "acme"))
    assert replace(made, id="") == DeadLetter(
        id="",
        data=b"{}",
        form=Form.BODY,
        attributes='{"a": "b"}',
        reason="rejected",
        detail="Svix: 422",
        message_id="77",
        subscription="projects/p/subscriptions/relay",
        project="acme",
        event_id="evt_1",
        svix_status=422,
        svix_code="v",
    )


def test_the_same_message_has_the_same_letter() -> None:
    """The message id and the subscription decide. Without an id, the bytes and attributes do."""

    def id_of(**changes: str | bytes | dict[str, str] | None) -> str:
        return DeadLetter.of(REJECTED, replace(PUSH, **changes), Names()).id  # type: ignore[arg-type] # of one field each

    assert id_of() == id_of(data=b"as it came again") == id_of()
    assert id_of(message_id=None) == id_of(message_id=None, subscription=None)
    different = {id_of(), id_of(message_id="78"), id_of(subscription="s"), id_of(message_id=None)}
    assert len(different | {id_of(message_id=None, data=b"[]")}) == 5
    assert id_of(attributes={}) == id_of()
    two = {"ce-id": "evt_1", "ce-type": "t"}
    unnamed = id_of(message_id=None, attributes=two)
    assert unnamed == id_of(message_id=None, attributes=dict(reversed(two.items())))
    assert unnamed not in {id_of(message_id=None), id_of(message_id=None, attributes={})}


async def test_names_that_a_ledger_cannot_hold_are_stored_in_another_form(
    open_ledger: Open,
) -> None:
    """If a letter could not be stored, its push would be redelivered again and again."""
    push = replace(PUSH, message_id="\ud800", subscription="s" * 5000)
    made = DeadLetter.of(REJECTED, push, Names("e" * 2_000_000, "\udfff\0", "p"))
    stored = await parked(open_ledger(), made)
    assert replace(stored, parked_at=None) == made
    assert stored.message_id == "\\ud800"
    assert stored.event_id is not None
    assert set(stored.event_id) == {"e"}
