"""What an event costs in calls to Firestore, counted on the wire.

`python -m bench` measures the time that an event costs. Times never fail a test.
"""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from bench.calls import CountedCalls, counting
from bench.functions import NAIVE, RELAY, function, push, simulator
from relay.delivery import Delivery
from relay.envelope import Event
from relay.ledger.firestore import FirestoreLedger
from relay.outcome import Answer, Call, Outcome, Verdict
from relay.pacing import Pacer, Turn, Waiter
from tests.ledger.events import event

COMMIT, BEGIN, READ, WRITE = "Commit", "BeginTransaction", "BatchGetDocuments", "BatchWrite"

ACCEPTED = Answer(Call.SEND, Verdict.ACCEPTED, 202, message_id="msg_1")
LIMITED = Answer(Call.SEND, Verdict.RATE_LIMITED, 429)
CONFLICT = Answer(Call.SEND, Verdict.CONFLICT, 409)
BROKEN = Answer(Call.SEND, Verdict.UNAVAILABLE, 503)
FOUND = Answer(Call.ASK, Verdict.ACCEPTED, 200, message_id="msg_1")

LIMIT = 60.0  # seconds of one delivery, longer than any of these takes


@dataclass
class Svix:
    """Answers from a script, one after the other."""

    answers: list[Answer]

    async def send(self, event: Event, idempotency_key: str) -> Answer:
        """The script's next answer."""
        return self.answers.pop(0)

    async def find(self, event: Event) -> Answer:
        """The script's next answer."""
        return self.answers.pop(0)


@dataclass
class Relay:
    """The protocol with a real Firestore client, whose calls are counted."""

    ledger: FirestoreLedger
    calls: CountedCalls
    pacer: Pacer

    async def deliver(
        self,
        what: Event,
        *answers: Answer,
        observe: Callable[[str, Event], None] = lambda _step, _event: None,
    ) -> tuple[Outcome, dict[str, int]]:
        """Deliver an event to a Svix with these answers. Returns the outcome and the calls."""
        self.calls.take()
        svix = Svix(list(answers))
        delivery = Delivery(ledger=self.ledger, sender=svix, pacer=self.pacer, observe=observe)
        now = time.monotonic()
        result = await delivery.deliver(what, now, now + LIMIT)
        assert not svix.answers
        return result.outcome, self.calls.take()

    @contextlib.asynccontextmanager
    async def busy(self, most: int) -> AsyncIterator[list[Turn]]:
        """Begin up to `most` calls for other events, of two projects, if the pacer allows."""
        async with contextlib.AsyncExitStack() as stack:
            turns: list[Turn] = []
            while len(turns) < most:
                now, number = time.monotonic(), len(turns)
                waiter = Waiter(f"other_{number % 2}", f"key_{number}", now, now + LIMIT)
                if self.pacer.must_wait(waiter):
                    break
                turns.append(await stack.enter_async_context(self.pacer.turn(waiter)))
                turns[-1].begin()
            yield turns

    @contextlib.asynccontextmanager
    async def full(self) -> AsyncIterator[None]:
        """Begin as many calls as the pacer allows. At the end Svix takes all their events."""
        async with self.busy(1000) as turns:
            yield
            for turn in turns:
                turn.report(ACCEPTED)


@pytest.fixture
async def relay(
    firestore_emulator: str, google_project: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Relay]:
    """A `Relay` whose connection is already open."""
    async with counting(firestore_emulator) as calls:
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", calls.address)
        ledger = FirestoreLedger.connect(google_project, "(default)")
        await ledger.record("0" * 64)
        yield Relay(ledger, calls, Pacer())
        await ledger.close()


async def test_a_first_delivery_is_two_writes(relay: Relay) -> None:
    """One write claims the event, and one settles it."""
    assert await relay.deliver(event(), ACCEPTED) == (Outcome.DELIVERED, {WRITE: 2})


async def test_a_duplicate_is_a_refused_write_and_a_read(relay: Relay) -> None:
    """The write is the claim. The read finds out why it was refused."""
    await relay.deliver(event(), ACCEPTED)
    assert await relay.deliver(event()) == (Outcome.DUPLICATE, {WRITE: 1, READ: 1})


async def test_a_delivery_that_waits_reads_the_record_first(relay: Relay) -> None:
    """It costs one read. A duplicate costs nothing more."""
    steps = asyncio.Queue[str]()
    async with relay.full():
        delivering = relay.deliver(
            event(), ACCEPTED, observe=lambda step, _: steps.put_nowait(step)
        )
        first = asyncio.ensure_future(delivering)
        assert await asyncio.wait_for(steps.get(), LIMIT) == "waiting"
    assert await first == (Outcome.DELIVERED, {READ: 1, WRITE: 2})
    async with relay.full():
        assert await relay.deliver(event()) == (Outcome.DUPLICATE, {READ: 1})


@pytest.mark.parametrize(
    "refusals", [[LIMITED], [BROKEN], [BROKEN, BROKEN]], ids=["429", "503", "503 twice"]
)
async def test_each_refused_call_is_two_writes_more(relay: Relay, refusals: list[Answer]) -> None:
    """One write releases the claim, and one claims again, without a read."""
    cost = await relay.deliver(event(), *refusals, ACCEPTED)
    assert cost == (Outcome.DELIVERED, {WRITE: 2 + 2 * len(refusals)})


async def test_asking_is_an_attempt_of_its_own(relay: Relay) -> None:
    """After a conflict, the question has a claim and a settlement of its own."""
    cost = await relay.deliver(event(), CONFLICT, FOUND)
    assert cost == (Outcome.DELIVERED, {WRITE: 4})


async def test_a_pause_that_stops_a_call_after_its_claim_is_two_writes_more(relay: Relay) -> None:
    """The claim is released, and made again after the pause."""
    async with relay.busy(5) as turns:
        outage = iter(turns)

        def begin_outage(step: str, _: Event) -> None:
            if step == "claimed":
                for turn in outage:
                    turn.report(BROKEN)

        cost = await relay.deliver(event(), ACCEPTED, observe=begin_outage)
    assert cost == (Outcome.DELIVERED, {WRITE: 4})


async def test_events_at_the_same_moment_share_their_calls(relay: Relay) -> None:
    """Twenty events are claimed in one call. Each still costs two writes."""
    costs = await asyncio.gather(
        *(relay.deliver(event(f"evt_{number}"), ACCEPTED) for number in range(20))
    )
    assert {outcome for outcome, _ in costs} == {Outcome.DELIVERED}
    sizes = relay.ledger.batches.sizes["writes"]
    assert sum(size * count for size, count in sizes.items()) == 40
    assert sizes[20] >= 1
    assert sum(sizes.values()) < 10


async def calls_of(source: Path, emulator: str) -> tuple[dict[str, int], dict[str, int]]:
    """The calls of a function, as it is deployed, for a first delivery and for a duplicate.

    The process has handled an event before, so that calls at the start are not counted.
    """
    async with counting(emulator) as calls, httpx.AsyncClient(timeout=30) as client:
        settings = {
            "FIRESTORE_EMULATOR_HOST": calls.address,
            "GOOGLE_CLOUD_PROJECT": f"cost-{uuid.uuid4().hex[:8]}",
        }
        with simulator() as svix_url, function(source, svix_url, settings) as started:
            counted = []
            for number in (1, 2, 2):
                answer = await client.post(started.notifications, json=push(number))
                assert answer.status_code == 200, answer.text
                counted.append(calls.take())
    return counted[1], counted[2]


async def test_the_function_costs_what_the_protocol_costs(firestore_emulator: str) -> None:
    """No code outside the protocol calls Firestore."""
    assert await calls_of(RELAY, firestore_emulator) == ({WRITE: 2}, {WRITE: 1, READ: 1})


async def test_the_count_shows_a_function_that_makes_more_calls(firestore_emulator: str) -> None:
    """The obvious function makes more calls, and reads in a first delivery."""
    first, duplicate = await calls_of(NAIVE, firestore_emulator)
    assert first[READ] == 1
    assert sum(first.values()) > 2
    assert sum(duplicate.values()) > 2
