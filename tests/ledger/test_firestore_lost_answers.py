"""Firestore's answers are lost: a write that landed must be recognised as ours."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from google.cloud.firestore import AsyncClient
from google.cloud.firestore_v1.services.firestore import FirestoreAsyncClient
from google.cloud.firestore_v1.types import Write

from relay.ledger import (
    Claim,
    Duplicate,
    State,
    key_of,
)
from relay.ledger.firestore import FirestoreLedger
from tests.ledger.events import claimed, delivered, event, letter
from tests.ledger.ledgers import KEY
from tests.wire import serving

T = TypeVar("T")

RECORD = f"events/{KEY}"
LETTER = letter()

NEVER = 60.0
"""Seconds after which a call counts as hanging."""


class Link:
    """A connection to the emulator that can lose answers: it holds them back, and then breaks."""

    def __init__(self, address: str) -> None:
        self._host, _, self._port = address.partition(":")
        self._withholding = False
        self._connections: set[asyncio.StreamWriter] = set()

    def withhold(self) -> None:
        """Hold back all answers from now on."""
        self._withholding = True

    def let_through(self) -> None:
        """Pass answers on from now on. The answers held back are lost."""
        self._withholding = False

    def break_off(self) -> None:
        """Break the client's connections. It may connect again."""
        self._withholding = False
        for connection in self._connections:
            connection.transport.abort()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one client's connection."""
        answers, questions = await asyncio.open_connection(self._host, int(self._port))
        self._connections.add(writer)

        async def forward() -> None:
            while data := await reader.read(65536):
                questions.write(data)
            questions.close()

        async def back() -> None:
            while data := await answers.read(65536):
                if not self._withholding:
                    writer.write(data)

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(forward())
                group.create_task(back())
        except* ConnectionError:
            pass
        finally:
            self._connections.discard(writer)
            questions.transport.abort()


def condition(write: Any) -> str:
    """Whether a write creates a document or updates one."""
    condition = Write.pb(write, coerce=True).current_document
    return "update" if condition.HasField("update_time") else "create"


@dataclass
class Unanswered:
    """A ledger, and a way to make a call whose write lands but is never answered."""

    ledger: FirestoreLedger
    link: Link
    records: AsyncClient
    monkeypatch: pytest.MonkeyPatch

    async def make(self, call: Awaitable[T], write: str, *paths: str) -> T:
        """Make a call, and hold back all answers from its write on.

        Break the connection once Firestore has the write.
        """
        owner: Any = FirestoreAsyncClient
        method = "commit"
        if paths[0].startswith("events/"):
            owner, method = self.ledger.batches._writes, "_make_call"
        send = getattr(owner, method)
        documents = [self.records.document(path) for path in paths]
        unchanged = {each.path: (await each.get()).update_time for each in documents}

        async def unheard(*arguments: Any, **options: Any) -> Any:
            writes = options["request"]["writes"] if method == "commit" else arguments[0]
            if condition(writes[0]) == write:
                self.monkeypatch.setattr(owner, method, send)
                self.link.withhold()
            return await send(*arguments, **options)

        self.monkeypatch.setattr(owner, method, unheard)
        answer = asyncio.ensure_future(call)
        async with asyncio.timeout(NEVER):
            for document in documents:
                while (await document.get()).update_time == unchanged[document.path]:
                    assert not answer.done()
        assert not answer.done()
        self.link.break_off()
        return await answer


@pytest.fixture
async def unanswered(
    connect: Callable[[str], FirestoreLedger], warm_emulator: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Unanswered]:
    """An `Unanswered` whose connection is already open."""
    link = Link(warm_emulator)
    connect(warm_emulator)
    records = AsyncClient()
    async with serving(link.carry) as url:
        ledger = connect(url.removeprefix("http://"))
        await claimed(ledger, event("evt_to_connect"))
        yield Unanswered(ledger, link, records, monkeypatch)
    await records._firestore_api.transport.close()


async def test_a_first_claim_whose_answer_was_lost_is_recognised(unanswered: Unanswered) -> None:
    """The client creates the record a second time, and Firestore answers that it exists."""
    ledger = unanswered.ledger
    claim = await unanswered.make(claimed(ledger, event()), "create", RECORD)
    assert claim.attempts == 1
    await ledger.complete(claim, "msg_1", fanout_confirmed=True)
    assert await ledger.claim(event()) == Duplicate("msg_1", payload_changed=False, attempts=1)


@pytest.mark.parametrize("by_ourselves", [True, False])
async def test_a_takeover_whose_answer_was_lost_is_recognised(
    unanswered: Unanswered, *, by_ourselves: bool
) -> None:
    """The client writes the record a second time, and Firestore answers that it has changed."""
    ledger = unanswered.ledger
    released = await ledger.release(await claimed(ledger, event()))
    claiming = claimed(ledger, event(), released if by_ourselves else None)
    claim = await unanswered.make(claiming, "update", RECORD)
    assert claim.attempts == 2
    await ledger.complete(claim, "msg_1", fanout_confirmed=True)
    assert await ledger.claim(event()) == Duplicate("msg_1", payload_changed=False, attempts=2)


async def test_a_completion_whose_answer_was_lost_is_recognised(unanswered: Unanswered) -> None:
    """The event is delivered, and the claim does not count as lost."""
    ledger = unanswered.ledger
    claim = await claimed(ledger, event())
    completing = ledger.complete(claim, "msg_1", fanout_confirmed=True)
    await unanswered.make(completing, "update", RECORD)
    assert await ledger.claim(event()) == Duplicate("msg_1", payload_changed=False, attempts=1)


async def test_a_release_whose_answer_was_lost_is_recognised(unanswered: Unanswered) -> None:
    """The next claim succeeds at once."""
    ledger = unanswered.ledger
    claim = await claimed(ledger, event())
    released = await unanswered.make(ledger.release(claim), "update", RECORD)
    assert (await claimed(ledger, event(), released)).attempts == 2


async def test_a_repair_whose_answer_was_lost_is_recognised(unanswered: Unanswered) -> None:
    """The record does not count as changed by another."""
    ledger = unanswered.ledger
    await claimed(ledger, event())
    record = await ledger.record(KEY)
    assert record is not None
    repairing = ledger.repair(record, State.DELIVERED, "msg_1", fanout_confirmed=True)
    await unanswered.make(repairing, "update", RECORD)
    assert await ledger.claim(event()) == Duplicate("msg_1", payload_changed=False, attempts=1)


async def test_a_letter_whose_answer_was_lost_is_parked(unanswered: Unanswered) -> None:
    """The letter that is found counts as parked."""
    parking = unanswered.ledger.park(LETTER)
    await unanswered.make(parking, "create", f"dead_letters/{LETTER.id}")


async def test_a_whole_batch_whose_answer_was_lost_is_recognised(unanswered: Unanswered) -> None:
    """Each of its claims is sent again alone, and recognised."""
    ledger = unanswered.ledger
    events = [event(), *(event(f"evt_{number}") for number in range(2, 21))]
    records = [f"events/{key_of('acme', each.id)}" for each in events]

    async def claim_all() -> list[Claim]:
        return await asyncio.gather(*(claimed(ledger, each) for each in events))

    claims = await unanswered.make(claim_all(), "create", *records)
    assert {claim.attempts for claim in claims} == {1}
    assert ledger.batches.sizes["writes"][20] == 1
    await asyncio.gather(
        *(ledger.complete(claim, "msg_1", fanout_confirmed=True) for claim in claims)
    )
    assert {type(await ledger.claim(each)) for each in events} == {Duplicate}


async def test_one_contested_claim_of_twenty_does_not_disturb_the_others(
    connect: Callable[[str], FirestoreLedger], warm_emulator: str
) -> None:
    """All are in one batch, and each gets its own answer."""
    ledger = connect(warm_emulator)
    events = [event(f"evt_{number}") for number in range(20)]
    await delivered(ledger, events[7])
    answers = await asyncio.gather(*map(ledger.claim, events))
    assert ledger.batches.sizes["writes"][20] == 1
    assert [number for number, a in enumerate(answers) if not isinstance(a, Claim)] == [7]
    assert answers[7] == Duplicate("msg_1", payload_changed=False, attempts=1)


async def test_a_call_that_hangs_is_given_up_in_time_to_try_again(
    unanswered: Unanswered, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stall of two seconds delays an event by two seconds. Its claim still succeeds."""
    ledger = unanswered.ledger
    monkeypatch.setitem(ledger.batches._options, "timeout", 0.3)
    unanswered.link.withhold()
    claiming = asyncio.ensure_future(claimed(ledger, event()))
    # The first answer is lost. The next one is passed on.
    document = unanswered.records.document(RECORD)
    async with asyncio.timeout(NEVER):
        while not (await document.get()).exists:
            assert not claiming.done()
    unanswered.link.let_through()
    assert (await claiming).attempts == 1
