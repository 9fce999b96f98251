"""The contract of both ledgers: everything that `delivery.py` relies on."""

import asyncio
from collections.abc import Awaitable
from dataclasses import replace

import pytest

from relay.envelope import Event
from relay.ledger import (
    LEASE_SECONDS,
    Claim,
    ClaimLost,
    Duplicate,
    InProgress,
    Ledger,
    Record,
    State,
    key_of,
)
from tests.ledger.events import claimed, delivered, event, letter
from tests.ledger.ledgers import KEY, MOMENT, Open, lease_over

HOUR = 3600.0


async def record_of(ledger: Ledger) -> Record:
    """The record of the one event that a test delivers."""
    record = await ledger.record(KEY)
    assert record is not None
    return record


async def test_a_first_claim_is_granted(open_ledger: Open) -> None:
    """It has the event's key, is the first attempt, and was made just now."""
    claim = await claimed(open_ledger(), event())
    assert claim.key == key_of("acme", "evt_1")
    assert claim.attempts == 1
    assert claim.age < 0.1


async def test_a_delivered_event_is_a_duplicate(open_ledger: Open) -> None:
    """The duplicate has Svix's message id. Another instance's ledger sees it too."""
    ledger = open_ledger()
    await delivered(ledger, event())
    for reader in (ledger, open_ledger()):
        assert await reader.claim(event()) == Duplicate("msg_1", payload_changed=False, attempts=1)


@pytest.mark.parametrize("confirmed", [True, False])
async def test_the_record_says_whether_svix_was_seen_to_accept(
    open_ledger: Open, *, confirmed: bool
) -> None:
    """If we did not see Svix accept the event, Svix may never send it to a customer.

    Reconciliation checks such records.
    """
    ledger = open_ledger()
    claim = await claimed(ledger, event())
    assert (await record_of(ledger)).fanout_confirmed is None
    await ledger.complete(claim, "msg_1", fanout_confirmed=confirmed)
    assert (await record_of(ledger)).fanout_confirmed is confirmed


async def test_an_event_delivered_without_a_message_id_is_a_duplicate(open_ledger: Open) -> None:
    """The settlement may not have known the message id."""
    ledger = open_ledger()
    await ledger.complete(await claimed(ledger, event()), None, fanout_confirmed=False)
    assert await ledger.claim(event()) == Duplicate(None, payload_changed=False, attempts=1)


async def test_a_duplicate_with_another_payload_says_so(open_ledger: Open) -> None:
    """The relay must notice that a publisher used an id twice."""
    ledger = open_ledger()
    await delivered(ledger, event(payload="a"))
    refusal = await ledger.claim(event(payload="b"))
    assert refusal == Duplicate("msg_1", payload_changed=True, attempts=1)


async def test_a_takeover_remembers_the_first_payload(open_ledger: Open) -> None:
    """The publisher used the id for two payloads, whichever of them was sent."""
    ledger = open_ledger()
    await ledger.release(await claimed(ledger, event(payload="a")))
    await delivered(ledger, event(payload="b"))
    refusal = await ledger.claim(event(payload="b"))
    assert refusal == Duplicate("msg_1", payload_changed=True, attempts=2)


async def test_the_same_id_in_another_project_is_another_event(open_ledger: Open) -> None:
    """A project is a tenant: one must not suppress another's events."""
    ledger = open_ledger()
    await delivered(ledger, event())
    await claimed(ledger, replace(event(), project="other"))


async def test_a_live_claim_is_in_progress(open_ledger: Open) -> None:
    """The answer says how long the lease still lasts."""
    ledger = open_ledger()
    await claimed(ledger, event())
    refusal = await ledger.claim(event())
    assert isinstance(refusal, InProgress)
    assert refusal.attempts == 1
    assert LEASE_SECONDS / 2 < refusal.lease_remaining <= LEASE_SECONDS


@pytest.mark.parametrize(("theirs", "ours", "holds"), [(HOUR, MOMENT, True), (MOMENT, HOUR, False)])
async def test_a_claim_is_judged_by_the_lease_in_its_record(
    open_ledger: Open, theirs: float, ours: float, *, holds: bool
) -> None:
    """Another version or an operator's command may have another lease than the claim's owner."""
    claimant, onlooker = open_ledger(theirs), open_ledger(ours)
    await claimed(claimant, event())
    await asyncio.sleep(MOMENT + 0.01)
    record = await record_of(onlooker)
    assert record.lease == theirs
    assert (record.lease_remaining > 0) is holds
    assert isinstance(await onlooker.claim(event()), InProgress if holds else Claim)


async def test_a_released_event_is_claimed_at_once(open_ledger: Open) -> None:
    """After a release, the lease no longer counts."""
    ledger = open_ledger()
    first = await claimed(ledger, event())
    await ledger.release(first)
    second = await claimed(ledger, event())
    assert second.attempts == 2
    assert second.token != first.token


async def test_a_delivery_claims_again_what_it_released(open_ledger: Open) -> None:
    """Each attempt after a refusal does this.

    The event's age and its count of attempts carry over.
    """
    ledger = open_ledger()
    first = await claimed(ledger, event())
    released = await ledger.release(first)
    second = await claimed(ledger, event(), released)
    third = await claimed(ledger, event(), await ledger.release(second))
    assert (second.attempts, third.attempts) == (2, 3)
    assert first.age < second.age < third.age < LEASE_SECONDS
    await ledger.complete(third, "msg_1", fanout_confirmed=True)
    assert (await record_of(ledger)).attempts == 3


async def test_a_claim_whose_release_was_lost_is_taken_over_at_once(open_ledger: Open) -> None:
    """Only the delivery that made the claim may do so. The old claim can't be settled any more."""
    ledger = open_ledger()
    first = await claimed(ledger, event())
    assert isinstance(await ledger.claim(event()), InProgress)
    second = await claimed(ledger, event(), first)
    assert second.attempts == 2
    with pytest.raises(ClaimLost):
        await ledger.release(first)
    await ledger.complete(second, "msg_1", fanout_confirmed=True)


@pytest.mark.parametrize("release_is_known", [True, False])
async def test_a_delivery_whose_claim_was_taken_over_sees_that(
    open_ledger: Open, *, release_is_known: bool
) -> None:
    """Its earlier claim gives it no right to claim again."""
    ledger = open_ledger()
    first = await claimed(ledger, event())
    released = await ledger.release(first)
    ours = released if release_is_known else first
    theirs = await claimed(ledger, event())
    assert isinstance(await ledger.claim(event(), previous=ours), InProgress)
    await ledger.complete(theirs, "msg_1", fanout_confirmed=True)
    seen = await ledger.claim(event(), previous=ours)
    assert seen == Duplicate("msg_1", payload_changed=False, attempts=2)


async def test_a_completion_that_was_thought_lost_is_a_duplicate(open_ledger: Open) -> None:
    """The record has the claim's token, but its state is delivered."""
    ledger = open_ledger()
    claim = await claimed(ledger, event())
    await ledger.complete(claim, "msg_1", fanout_confirmed=True)
    assert isinstance(await ledger.claim(event(), previous=claim), Duplicate)


async def test_a_claim_whose_lease_is_over_is_taken_over(open_ledger: Open) -> None:
    """The worker that made it is dead or too late."""
    ledger = open_ledger(MOMENT)
    await claimed(ledger, event())
    await lease_over(ledger)
    assert (await claimed(ledger, event())).attempts == 2


async def test_a_takeover_has_a_lease_of_its_own(open_ledger: Open) -> None:
    """Otherwise a third worker could take it over at once."""
    ledger = open_ledger(MOMENT)
    await claimed(ledger, event())
    await lease_over(ledger)
    patient = open_ledger()
    await claimed(patient, event())
    refusal = await ledger.claim(event())
    assert isinstance(refusal, InProgress)
    assert refusal.lease_remaining > LEASE_SECONDS / 2


@pytest.mark.parametrize("completes", [True, False])
async def test_a_claim_taken_over_can_be_neither_completed_nor_released(
    open_ledger: Open, *, completes: bool
) -> None:
    """Nothing is written. Only the new owner can settle its claim."""
    ledger, patient = open_ledger(MOMENT), open_ledger()
    lost = await claimed(ledger, event())
    await lease_over(ledger)
    successor = await claimed(patient, event())
    settling: Awaitable[object] = (
        ledger.complete(lost, "msg_lost", fanout_confirmed=True)
        if completes
        else ledger.release(lost)
    )
    with pytest.raises(ClaimLost):
        await settling
    assert isinstance(await ledger.claim(event()), InProgress)
    await ledger.complete(successor, "msg_1", fanout_confirmed=True)
    assert await ledger.claim(event()) == Duplicate("msg_1", payload_changed=False, attempts=2)


async def test_a_claim_past_its_lease_that_was_not_taken_over_can_still_be_settled(
    open_ledger: Open,
) -> None:
    """Svix has the event. Refusing to record that would only cause another send."""
    ledger = open_ledger(MOMENT)
    claim = await claimed(ledger, event())
    await lease_over(ledger)
    await ledger.complete(claim, "msg_1", fanout_confirmed=True)
    assert isinstance(await ledger.claim(event()), Duplicate)


async def test_a_released_claim_cannot_be_completed(open_ledger: Open) -> None:
    """After a release, another delivery may already be sending."""
    ledger = open_ledger()
    claim = await claimed(ledger, event())
    await ledger.release(claim)
    with pytest.raises(ClaimLost):
        await ledger.complete(claim, "msg_1", fanout_confirmed=True)
    await claimed(ledger, event())


async def test_a_delivered_event_cannot_be_released(open_ledger: Open) -> None:
    """Otherwise it would be sent again."""
    ledger = open_ledger()
    claim = await claimed(ledger, event())
    await ledger.complete(claim, "msg_1", fanout_confirmed=True)
    with pytest.raises(ClaimLost):
        await ledger.release(claim)
    assert isinstance(await ledger.claim(event()), Duplicate)


async def test_a_settle_that_landed_is_recognised_when_repeated(open_ledger: Open) -> None:
    """The answer of a settlement may be lost, and then the settlement is repeated."""
    ledger = open_ledger()
    released = await claimed(ledger, event())
    await ledger.release(released)
    await ledger.release(released)
    completed = await claimed(ledger, event())
    await ledger.complete(completed, "msg_1", fanout_confirmed=True)
    await ledger.complete(completed, "msg_1", fanout_confirmed=True)
    assert await ledger.claim(event()) == Duplicate("msg_1", payload_changed=False, attempts=2)


async def test_a_claim_without_a_record_cannot_be_settled(open_ledger: Open) -> None:
    """A record that has expired is not created by a settlement."""
    ledger = open_ledger()
    phantom = replace(await claimed(ledger, event()), key=key_of("acme", "evt_gone"))
    with pytest.raises(ClaimLost):
        await ledger.complete(phantom, "msg_1", fanout_confirmed=True)
    await claimed(ledger, event("evt_gone"))
    # A delivery whose record has expired meanwhile starts over.
    gone = replace(phantom, key=key_of("acme", "evt_gone_too"))
    assert (await claimed(ledger, event("evt_gone_too"), gone)).attempts == 1


async def test_the_age_counts_from_the_first_claim(open_ledger: Open) -> None:
    """The age says whether Svix may have forgotten the first attempt."""
    ledger = open_ledger(MOMENT)
    first = await claimed(ledger, event())
    await lease_over(ledger)
    second = await claimed(ledger, event())
    released = await ledger.release(second)
    third = await claimed(ledger, event(), released)
    await lease_over(ledger)
    fourth = await claimed(ledger, event())
    assert first.age < MOMENT < second.age < third.age
    assert fourth.age > 2 * MOMENT
    assert fourth.attempts == 4


@pytest.mark.parametrize("before", ["nothing", "released", "lease over"])
async def test_of_fifty_claims_at_once_one_wins(open_ledger: Open, before: str) -> None:
    """The claims go through two instances, for a new event or a takeover. The winner can settle."""
    if before != "nothing":
        ledger = open_ledger(MOMENT)
        claim = await claimed(ledger, event())
        await (ledger.release(claim) if before == "released" else lease_over(ledger))
    ledgers = [open_ledger(HOUR) for _ in range(2)]
    answers = await asyncio.gather(*(ledgers[n % 2].claim(event()) for n in range(50)))
    (winner,) = (answer for answer in answers if isinstance(answer, Claim))
    assert {type(answer) for answer in answers} == {Claim, InProgress}
    assert winner.attempts == (1 if before == "nothing" else 2)
    await ledgers[0].complete(winner, "msg_1", fanout_confirmed=True)
    assert isinstance(await ledgers[1].claim(event()), Duplicate)


async def test_many_events_at_once_do_not_disturb_each_other(open_ledger: Open) -> None:
    """200 events are claimed and completed, every second one after a release."""
    ledger = open_ledger()
    events = [event(f"evt_{n}") for n in range(200)]

    async def deliver(number: int, what: Event) -> None:
        claim = await claimed(ledger, what)
        if number % 2:
            claim = await claimed(ledger, what, await ledger.release(claim))
        await ledger.complete(claim, f"msg_{what.id}", fanout_confirmed=True)

    await asyncio.gather(*(deliver(number, what) for number, what in enumerate(events)))
    answers = await asyncio.gather(*map(ledger.claim, events))
    assert answers == [
        Duplicate(f"msg_{what.id}", payload_changed=False, attempts=1 + number % 2)
        for number, what in enumerate(events)
    ]


async def test_a_record_has_the_state_of_its_event(open_ledger: Open) -> None:
    """A request that must wait reads the record before it waits.

    The operator's commands read records too.
    """
    ledger = open_ledger()
    assert await ledger.record(KEY) is None
    claim = await claimed(ledger, event())
    record = await record_of(ledger)
    assert record.state is State.CLAIMED
    assert LEASE_SECONDS / 2 < record.lease_remaining <= LEASE_SECONDS
    assert record.denial(event()) == InProgress(record.lease_remaining, 1)
    await ledger.release(claim)
    record = await record_of(ledger)
    assert (record.state, record.denial(event())) == (State.RELEASED, None)
    await delivered(ledger, event())
    record = await record_of(ledger)
    assert (record.state, record.svix_message_id) == (State.DELIVERED, "msg_1")
    assert record.pubsub_message_id == "77"
    assert record.delivered_at is not None
    assert record.first_claimed_at < record.delivered_at
    assert record.lease_remaining <= 0
    assert record.denial(event()) == Duplicate("msg_1", payload_changed=False, attempts=2)


async def test_a_letter_that_is_parked_twice_is_stored_once(open_ledger: Open) -> None:
    """Pub/Sub may redeliver a message before it has processed the ack."""
    ledger = open_ledger()
    await ledger.park(letter())
    await ledger.park(replace(letter(), detail="parked again"))
    stored = await ledger.dead_letter(letter().id)
    assert stored is not None
    assert stored.detail == letter().detail
