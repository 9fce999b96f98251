"""One contract, both ledgers: what `delivery.py` relies on, whoever keeps the record."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from relay.envelope import Event
from relay.ledger import (
    Claim,
    ClaimLost,
    DeadLetter,
    Duplicate,
    InProgress,
    key_of,
)
from tests.ledger.events import claimed, event
from tests.ledger.ledgers import HOUR, MOMENT, Open


async def lease_over(open_ledger: Open) -> None:
    """Wait until the claim on the event is older than a moment, by the ledger's own clock."""
    patient = await open_ledger(HOUR).claim(event())
    assert isinstance(patient, InProgress)
    left = patient.lease_left - HOUR + MOMENT
    await asyncio.sleep(max(0.0, left.total_seconds() + 0.01))


async def test_a_first_claim_is_granted(open_ledger: Open) -> None:
    """Under the event's key, as the first attempt, aged nothing."""
    claim = await claimed(open_ledger(HOUR), event())
    assert claim.key == key_of("acme", "evt_1")
    assert claim.attempts == 1
    assert claim.age == timedelta(0)


async def test_a_delivered_event_is_a_duplicate(open_ledger: Open) -> None:
    """With the id that Svix gave it; also through another instance's ledger."""
    ledger = open_ledger(HOUR)
    await ledger.complete(await claimed(ledger, event()), "msg_1")
    for reader in (ledger, open_ledger(HOUR)):
        assert await reader.claim(event()) == Duplicate("msg_1", payload_changed=False, attempts=1)


async def test_an_event_delivered_without_a_message_id_is_a_duplicate(open_ledger: Open) -> None:
    """A 2xx that could not be read is delivered all the same."""
    ledger = open_ledger(HOUR)
    await ledger.complete(await claimed(ledger, event()), None)
    assert await ledger.claim(event()) == Duplicate(None, payload_changed=False, attempts=1)


async def test_a_duplicate_with_another_payload_says_so(open_ledger: Open) -> None:
    """A publisher that uses an id twice must be noticed."""
    ledger = open_ledger(HOUR)
    await ledger.complete(await claimed(ledger, event(payload="a")), "msg_1")
    refusal = await ledger.claim(event(payload="b"))
    assert refusal == Duplicate("msg_1", payload_changed=True, attempts=1)


async def test_a_takeover_keeps_the_first_payload_in_mind(open_ledger: Open) -> None:
    """Whichever payload was sent in the end, the id has been used for two."""
    ledger = open_ledger(HOUR)
    await ledger.release(await claimed(ledger, event(payload="a")))
    await ledger.complete(await claimed(ledger, event(payload="b")), "msg_1")
    refusal = await ledger.claim(event(payload="b"))
    assert refusal == Duplicate("msg_1", payload_changed=True, attempts=2)


async def test_the_same_id_in_another_project_is_another_event(open_ledger: Open) -> None:
    """A project is a tenant: one must not suppress another's events."""
    ledger = open_ledger(HOUR)
    await ledger.complete(await claimed(ledger, event()), "msg_1")
    await claimed(ledger, replace(event(), project="other"))


async def test_a_live_claim_is_in_progress(open_ledger: Open) -> None:
    """Until its lease is over, and it says when that is."""
    ledger = open_ledger(HOUR)
    await claimed(ledger, event())
    refusal = await ledger.claim(event())
    assert isinstance(refusal, InProgress)
    assert refusal.attempts == 1
    assert timedelta(minutes=59) < refusal.lease_left <= HOUR


async def test_a_released_event_is_claimed_at_once(open_ledger: Open) -> None:
    """Its lease has no meaning any more."""
    ledger = open_ledger(HOUR)
    first = await claimed(ledger, event())
    await ledger.release(first)
    second = await claimed(ledger, event())
    assert second.attempts == 2
    assert second.token != first.token


async def test_a_claim_whose_lease_is_over_is_taken_over(open_ledger: Open) -> None:
    """The worker that made it is dead, or too late."""
    ledger = open_ledger(MOMENT)
    await claimed(ledger, event())
    await lease_over(open_ledger)
    assert (await claimed(ledger, event())).attempts == 2


async def test_a_takeover_has_a_lease_of_its_own(open_ledger: Open) -> None:
    """Else two workers would hold one claim."""
    ledger = open_ledger(MOMENT)
    await claimed(ledger, event())
    await lease_over(open_ledger)
    await claimed(ledger, event())
    refusal = await open_ledger(HOUR).claim(event())
    assert isinstance(refusal, InProgress)
    assert refusal.lease_left > timedelta(minutes=59)


@pytest.mark.parametrize("settle", ["complete", "release"])
async def test_a_claim_taken_over_can_be_neither_completed_nor_released(
    open_ledger: Open, settle: str
) -> None:
    """Nothing is written: the successor's claim stands, and is the one to be settled."""
    ledger = open_ledger(MOMENT)
    lost = await claimed(ledger, event())
    await lease_over(open_ledger)
    successor = await claimed(ledger, event())
    with pytest.raises(ClaimLost):
        await (ledger.complete(lost, "msg_lost") if settle == "complete" else ledger.release(lost))
    patient = open_ledger(HOUR)
    assert isinstance(await patient.claim(event()), InProgress)
    await ledger.complete(successor, "msg_1")
    assert await patient.claim(event()) == Duplicate("msg_1", payload_changed=False, attempts=2)


async def test_a_claim_past_its_lease_that_nobody_took_over_can_still_be_settled(
    open_ledger: Open,
) -> None:
    """Svix has the event: to refuse the record of that would only cost a resend."""
    ledger = open_ledger(MOMENT)
    claim = await claimed(ledger, event())
    await lease_over(open_ledger)
    await ledger.complete(claim, "msg_1")
    assert isinstance(await ledger.claim(event()), Duplicate)


async def test_a_released_claim_cannot_be_completed(open_ledger: Open) -> None:
    """It was given up: another may be sending already."""
    ledger = open_ledger(HOUR)
    claim = await claimed(ledger, event())
    await ledger.release(claim)
    with pytest.raises(ClaimLost):
        await ledger.complete(claim, "msg_1")
    await claimed(ledger, event())


async def test_a_delivered_event_cannot_be_released(open_ledger: Open) -> None:
    """Once delivered, always delivered."""
    ledger = open_ledger(HOUR)
    claim = await claimed(ledger, event())
    await ledger.complete(claim, "msg_1")
    with pytest.raises(ClaimLost):
        await ledger.release(claim)
    assert isinstance(await ledger.claim(event()), Duplicate)


async def test_a_settle_that_landed_is_recognised_when_repeated(open_ledger: Open) -> None:
    """Its answer may be lost, and a client library repeats what was not answered."""
    ledger = open_ledger(HOUR)
    released = await claimed(ledger, event())
    await ledger.release(released)
    await ledger.release(released)
    completed = await claimed(ledger, event())
    await ledger.complete(completed, "msg_1")
    await ledger.complete(completed, "msg_1")
    assert await ledger.claim(event()) == Duplicate("msg_1", payload_changed=False, attempts=2)


async def test_a_claim_on_nothing_cannot_be_settled(open_ledger: Open) -> None:
    """A record that is gone is not made anew."""
    ledger = open_ledger(HOUR)
    phantom = replace(await claimed(ledger, event()), key=key_of("acme", "evt_gone"))
    with pytest.raises(ClaimLost):
        await ledger.complete(phantom, "msg_1")
    await claimed(ledger, event("evt_gone"))


async def test_the_age_runs_on_across_releases_and_takeovers(open_ledger: Open) -> None:
    """It is how one knows that Svix may have forgotten the first try."""
    ledger = open_ledger(MOMENT)
    first = await claimed(ledger, event())
    await lease_over(open_ledger)
    second = await claimed(ledger, event())
    await ledger.release(second)
    third = await claimed(ledger, event())
    await lease_over(open_ledger)
    fourth = await claimed(ledger, event())
    assert first.age < MOMENT < second.age < third.age
    assert fourth.age > 2 * MOMENT
    assert fourth.attempts == 4


@pytest.mark.parametrize("before", ["nothing", "released", "lease over"])
async def test_of_fifty_claims_at_once_one_wins(open_ledger: Open, before: str) -> None:
    """Through two instances, of a new event or one to be taken over; the winner can settle."""
    ledger = open_ledger(HOUR)
    if before != "nothing":
        claim = await claimed(ledger, event())
    if before == "released":
        await ledger.release(claim)
    elif before == "lease over":
        await lease_over(open_ledger)
    lease = MOMENT if before == "lease over" else HOUR
    ledgers = [open_ledger(lease) for _ in range(2)]
    answers = await asyncio.gather(*(ledgers[n % 2].claim(event()) for n in range(50)))
    winners = [answer for answer in answers if isinstance(answer, Claim)]
    # A lease that is over in a moment may be so within the race: each takeover has one winner.
    assert len(winners) == 1 or before == "lease over"
    first_attempt = 1 if before == "nothing" else 2
    attempts = sorted(winner.attempts for winner in winners)
    assert attempts == [*range(first_attempt, first_attempt + len(winners))]
    winner = max(winners, key=lambda winner: winner.attempts)
    await ledger.complete(winner, "msg_1")
    assert isinstance(await ledger.claim(event()), Duplicate)


async def test_many_events_at_once_do_not_hinder_each_other(open_ledger: Open) -> None:
    """200 claimed, completed, and known for good."""
    ledger = open_ledger(HOUR)
    events = [event(f"evt_{n}") for n in range(200)]

    async def deliver(what: Event) -> None:
        await ledger.complete(await claimed(ledger, what), f"msg_{what.id}")

    await asyncio.gather(*map(deliver, events))
    answers = await asyncio.gather(*map(ledger.claim, events))
    assert answers == [Duplicate(f"msg_{e.id}", payload_changed=False, attempts=1) for e in events]


async def test_parking_twice_is_once(open_ledger: Open) -> None:
    """Pub/Sub may bring a message again before the acknowledgement counts."""
    ledger = open_ledger(HOUR)
    letter = DeadLetter(data=b"\xff{", reason="malformed", detail="no JSON", message_id="77")
    await ledger.park(letter)
    await ledger.park(replace(letter, detail="parked again"))
