"""No schedule of a few deliveries and faults loses an event or sends one twice.

A protocol without one of its parts does.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from relay import delivery
from relay.delivery import History
from relay.envelope import Event
from relay.ledger import Claim, Duplicate, InProgress
from relay.outcome import Answer, Verdict
from tests.simulation.explorer import Explorer, Scenario, Violation
from tests.simulation.model import OK, ModelLedger, ModelSender, Op, Row, World, call

SCENARIOS = {
    "two deliveries of one event, two faults": Scenario(("a", "a"), 2),
    "three deliveries of one event, one fault": Scenario(("a", "a", "a"), 1),
    "one delivery each of two events, one fault": Scenario(("a", "b"), 1),
    "one delivery, three faults": Scenario(("a",), 3, turns=6),
    "two deliveries that have to wait, one fault": Scenario(("a", "a"), 1, waits=True),
    "an id that something else has taken, one fault": Scenario(
        ("a",), 1, turns=14, world=lambda: World(ids_are_taken=True)
    ),
}


SHARE = 50_000 if os.environ.get("SOAK") == "1" else 3_000
"""The maximum number of schedules of each scenario. SOAK=1 raises it."""


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_schedule_keeps_the_promise(name: str, figures: Callable[[str], None]) -> None:
    """An acknowledged event is in Svix or parked. No event is in Svix twice. All are delivered."""
    explorer = Explorer(SCENARIOS[name])
    explorer.explore(SHARE)
    assert explorer.schedules > 50
    counts = f"{explorer.schedules:,} schedules, {len(explorer.states):,} states"
    figures(f"simulation: {name}: {counts}")


class Unfenced(World):
    """Settles any claim, even one that was taken over."""

    def may_settle(self, row: Row, claim: Claim) -> bool:
        return True


class LeaseOfItsOwn(World):
    """Takes a claim's lease from its own setting, not from the record."""

    def lease(self, row: Row) -> float:
        return 100 * row.lease


@dataclass(slots=True)
class ConfirmsAll(ModelLedger):
    """Treats a message that was found by asking as one that Svix has queued."""

    async def complete(
        self, claim: Claim, svix_message_id: str | None, *, fanout_confirmed: bool
    ) -> None:
        await ModelLedger.complete(self, claim, svix_message_id, fanout_confirmed=True)


@dataclass(slots=True)
class SettlesFirst(ModelLedger):
    """Records the delivery with the claim, before anything is sent."""

    async def claim(
        self, event: Event, *, previous: Claim | None = None
    ) -> Claim | Duplicate | InProgress:
        claimed = await ModelLedger.claim(self, event, previous=previous)
        if isinstance(claimed, Claim):
            await call(Op("complete", event.id, (claimed, True)))
        return claimed


@dataclass(slots=True)
class NeverRefuses(ModelLedger):
    """Lets every delivery send, whoever has the claim."""

    async def claim(
        self, event: Event, *, previous: Claim | None = None
    ) -> Claim | Duplicate | InProgress:
        claimed = await ModelLedger.claim(self, event, previous=previous)
        if isinstance(claimed, Claim):
            return claimed
        return Claim(event.id, "none", -1, 1, 0.0)

    async def complete(
        self, claim: Claim, svix_message_id: str | None, *, fanout_confirmed: bool
    ) -> None:
        if claim.version != -1:
            await ModelLedger.complete(
                self, claim, svix_message_id, fanout_confirmed=fanout_confirmed
            )

    async def release(self, claim: Claim) -> Claim:
        if claim.version != -1:
            await ModelLedger.release(self, claim)
        return claim


class TakesConflictsForDelivered(ModelSender):
    """Treats a 409 as a delivery, and does not ask for the message."""

    async def send(self, event: Event, idempotency_key: str) -> Answer:
        answer = await ModelSender.send(self, event, idempotency_key)
        return OK if answer.verdict is Verdict.CONFLICT else answer


ONE = Scenario(("a",), 2)
TWO = SCENARIOS["two deliveries of one event, two faults"]
MUTANTS: dict[str, Scenario] = {
    "no fencing": replace(TWO, world=Unfenced),
    "settles before it sends": replace(TWO, ledger=SettlesFirst),
    "no claim": replace(TWO, ledger=NeverRefuses),
    "a lease that is not from the record": replace(TWO, world=LeaseOfItsOwn),
    "every acceptance is confirmed": replace(ONE, ledger=ConfirmsAll),
    "every 409 is delivered": replace(ONE, sender=TakesConflictsForDelivered),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_protocol_without_one_of_its_parts_fails(name: str) -> None:
    """Without each part, some schedule breaks the promise."""
    with pytest.raises(Violation):
        Explorer(MUTANTS[name]).explore()


def test_a_protocol_that_never_asks_first_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer is lost, and the redelivery comes days later: Svix has forgotten key and id."""
    monkeypatch.setattr(delivery, "ASK_FIRST_SECONDS", math.inf)
    with pytest.raises(Violation, match="in Svix 2 times"):
        Explorer(TWO).explore()


def test_a_protocol_that_parks_a_second_conflict_at_once_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two first events may race for an application twice."""
    monkeypatch.setattr(delivery, "UNEXPLAINED_AFTER_SECONDS", 0.0)
    with pytest.raises(Violation, match="a conflict that would have passed"):
        Explorer(ONE).explore()


def test_a_protocol_that_counts_conflicts_across_a_failed_send_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Svix may still be working on that send, and hold its lock: the next 409 is a new conflict."""
    after = History.after

    def never_forgets(history: History, answer: Answer, now: float) -> History:
        new = after(history, answer, now)
        return new if new.conflicts else replace(new, conflicts=history.conflicts)

    monkeypatch.setattr(History, "after", never_forgets)
    with pytest.raises(Violation, match="a conflict that would have passed"):
        Explorer(SCENARIOS["one delivery, three faults"]).explore()


def test_a_protocol_that_asks_for_ever_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event whose id is taken would be redelivered until it is in the dead-letter topic."""
    monkeypatch.setattr(delivery, "UNEXPLAINED_CONFLICTS", 1_000_000)
    with pytest.raises(Violation, match="not delivered although nothing fails"):
        Explorer(SCENARIOS["an id that something else has taken, one fault"]).explore()
