"""The protocol's decisions, one at a time; every interleaving of them is in tests/simulation."""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from relay.delivery import LAST_TURN_SECONDS, Delivery
from relay.envelope import Event, Source
from relay.ledger import Claim, ClaimLost, DeadLetter, Duplicate, InProgress, LedgerUnavailable
from relay.outcome import Answer, Outcome, Result, Verdict
from relay.pacing import Pacer, TurnedAway

ACCEPTED = Answer(Verdict.ACCEPTED, 202, message_id="msg_1")
LIMITED = Answer(Verdict.RATE_LIMITED, 429, retry_after=7)
CONFLICT = Answer(Verdict.CONFLICT, 409, code="conflict")
NO_APPLICATION = Answer(Verdict.NOT_FOUND, 404, code="not_found")
NO_MESSAGE = NO_APPLICATION
BROKEN = Answer(Verdict.UNAVAILABLE, 500)
SILENT = Answer(Verdict.UNAVAILABLE)
REJECTED = Answer(Verdict.REJECTED, 422, locs=("body.payload",))
UNAUTHORISED = Answer(Verdict.MISCONFIGURED, 401, code="authentication_failed")
OUT_OF_TURNS = TurnedAway(Outcome.RATE_LIMITED, 12.0, "no turn in time")
DEADLINE = 60.0


@dataclass
class Ledger:
    """Answers a claim as it is told; notes what it is asked, fails where told to."""

    answer: Claim | Duplicate | InProgress
    log: list[str]
    fails: dict[str, Exception] = field(default_factory=dict)
    letters: list[DeadLetter] = field(default_factory=list)

    def _note(self, what: str) -> None:
        self.log.append(what)
        if failure := self.fails.get(what.split(maxsplit=1)[0]):
            raise failure

    async def claim(self, event: Event) -> Claim | Duplicate | InProgress:
        self._note(f"claim {event.id}")
        return self.answer

    async def complete(self, claim: Claim, svix_message_id: str | None) -> None:
        assert claim is self.answer
        self._note(f"complete {svix_message_id}")

    async def release(self, claim: Claim) -> None:
        assert claim is self.answer
        self._note("release")

    async def park(self, letter: DeadLetter) -> None:
        self._note(f"park {letter.reason}")
        self.letters.append(letter)

    async def close(self) -> None:
        self._note("close")


@dataclass
class Sender:
    """Answers from a script."""

    answers: list[Answer | BaseException]
    log: list[str]

    def _next(self, what: str) -> Answer:
        self.log.append(what)
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def send(self, _event: Event, idempotency_key: str) -> Answer:
        return self._next(f"send {idempotency_key}")

    async def find(self, event: Event) -> Answer:
        return self._next(f"find {event.id}")


class ScriptedPacer(Pacer):
    """Gives this many turns, then turns away."""

    def __init__(self, turns: int, log: list[str]) -> None:
        super().__init__()
        self.turns = turns
        self.log = log
        self.delays: list[float] = []
        self.reports: list[Answer] = []
        self.last_turn = 0.0

    def refusal(self, deadline: float) -> TurnedAway | None:
        self.last_turn = deadline
        return None if self.turns else OUT_OF_TURNS

    async def turn(self, deadline: float, delay: float = 0.0) -> None:
        assert deadline == self.last_turn
        self.delays.append(delay)
        if not self.turns:
            raise OUT_OF_TURNS
        self.turns -= 1

    def report(self, answer: Answer) -> None:
        self.reports.append(answer)


@dataclass
class Run:
    """One delivery, and all that it did."""

    result: Result
    log: list[str]
    pacer: ScriptedPacer
    ledger: Ledger


def claim(age: timedelta = timedelta(0), attempts: int = 1) -> Claim:
    """A claim of ours."""
    return Claim("key", "token", object(), attempts, age)


async def deliver(
    *answers: Answer | BaseException,
    claimed: Claim | Duplicate | InProgress | None = None,
    turns: int = 10,
    pushed: bool = True,
    fails: dict[str, Exception] | None = None,
    create_applications: bool = True,
) -> Run:
    """Deliver one event where Svix answers thus."""
    log: list[str] = []
    ledger = Ledger(claimed or claim(), log, fails or {})
    pacer = ScriptedPacer(turns, log)
    delivery = Delivery(ledger, Sender(list(answers), log), pacer, lambda: 0.0, create_applications)
    source = Source(pushed=pushed, data=b"{}", message_id="77", attributes={"a": "b"})
    event = Event("evt_1", "user.created", "acme", {"data": "hunter2"}, "0" * 64, source)
    return Run(await delivery.deliver(event, DEADLINE), log, pacer, ledger)


async def test_an_event_is_claimed_sent_and_settled_in_this_order() -> None:
    """The one way."""
    run = await deliver(ACCEPTED)
    assert run.log == ["claim evt_1", "send key", "complete msg_1"]
    assert run.result == Result(
        outcome=Outcome.DELIVERED, svix_status=202, svix_message_id="msg_1", attempts=1
    )


async def test_the_last_turn_leaves_time_for_the_call_and_the_settle() -> None:
    """Nobody queues beyond that."""
    assert (await deliver(ACCEPTED)).pacer.last_turn == DEADLINE - LAST_TURN_SECONDS


async def test_without_a_turn_in_reach_the_ledger_is_not_touched() -> None:
    """A refusal costs nothing."""
    run = await deliver(turns=0)
    assert run.log == []
    assert (run.result.outcome, run.result.retry_after) == (Outcome.RATE_LIMITED, 12.0)


async def test_a_duplicate_is_answered_at_once() -> None:
    """It waits for nothing and asks Svix nothing."""
    run = await deliver(claimed=Duplicate("msg_1", payload_changed=False, attempts=1))
    assert run.log == ["claim evt_1"]
    assert run.pacer.delays == []
    assert run.result.outcome is Outcome.DUPLICATE
    assert run.result.severity == "INFO"
    assert run.result.svix_message_id == "msg_1"


async def test_a_duplicate_with_another_payload_is_a_warning() -> None:
    """A publisher is at fault; the event id decides all the same."""
    run = await deliver(claimed=Duplicate("msg_1", payload_changed=True, attempts=1))
    assert (run.result.status, run.result.severity) == (200, "WARNING")
    assert run.result.detail == "payload_changed"


async def test_a_live_claim_of_another_is_in_progress() -> None:
    """409: Pub/Sub brings it back."""
    run = await deliver(claimed=InProgress(timedelta(seconds=30), attempts=1))
    assert run.log == ["claim evt_1"]
    assert run.result.outcome is Outcome.IN_PROGRESS


async def test_an_old_claim_asks_svix_before_it_sends() -> None:
    """Svix may have forgotten the idempotency key of the earlier try."""
    run = await deliver(ACCEPTED, claimed=claim(timedelta(hours=11, seconds=1), 2))
    assert run.log == ["claim evt_1", "find evt_1", "complete msg_1"]
    assert run.result.outcome is Outcome.DELIVERED


async def test_an_old_claim_is_sent_once_svix_has_said_that_it_has_nothing() -> None:
    """And not before, however often asking fails."""
    run = await deliver(BROKEN, LIMITED, NO_MESSAGE, ACCEPTED, claimed=claim(timedelta(hours=12)))
    assert run.log[1:] == ["find evt_1"] * 3 + ["send key", "complete msg_1"]


async def test_a_younger_claim_is_resent_without_asking() -> None:
    """The idempotency key covers it."""
    run = await deliver(ACCEPTED, claimed=claim(timedelta(hours=10, minutes=59), 2))
    assert run.log[1:] == ["send key", "complete msg_1"]


@pytest.mark.parametrize("refusal", [LIMITED, BROKEN, SILENT, NO_APPLICATION])
async def test_what_may_heal_is_tried_again_under_the_same_claim_and_key(refusal: Answer) -> None:
    """Until Svix takes it."""
    run = await deliver(refusal, refusal, ACCEPTED)
    assert run.log == ["claim evt_1", *["send key"] * 3, "complete msg_1"]
    assert run.pacer.reports == [refusal, refusal, ACCEPTED]


async def test_retries_back_off_but_after_a_429_the_pacer_alone_decides() -> None:
    """Exponential, capped."""
    run = await deliver(LIMITED, *[BROKEN] * 8, ACCEPTED)
    assert run.pacer.delays == [0, 0, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (LIMITED, Outcome.RATE_LIMITED),
        (BROKEN, Outcome.UNAVAILABLE),
        (SILENT, Outcome.UNAVAILABLE),
        (CONFLICT, Outcome.UNAVAILABLE),
        (NO_APPLICATION, Outcome.UNAVAILABLE),
    ],
)
async def test_when_no_turn_is_left_the_claim_is_released_and_the_last_answer_told(
    answer: Answer, outcome: Outcome
) -> None:
    """Pub/Sub brings the event back."""
    run = await deliver(answer, turns=1)
    assert run.log == ["claim evt_1", "send key", "release"]
    assert run.result.outcome is outcome
    assert run.result.svix_status == answer.status
    assert run.result.retry_after == 12.0
    assert run.result.dead_letter is None


async def test_an_unanswered_question_is_never_an_unknown_application() -> None:
    """A 404 to `message.get` says nothing about the application."""
    old = claim(timedelta(hours=12))
    run = await deliver(NO_MESSAGE, claimed=old, turns=1, create_applications=False)
    assert run.result.outcome is Outcome.UNAVAILABLE


async def test_a_conflict_that_svix_can_show_is_delivered() -> None:
    """The event is there, from an earlier try."""
    run = await deliver(CONFLICT, Answer(Verdict.ACCEPTED, 200, message_id="msg_0"))
    assert run.log == ["claim evt_1", "send key", "find evt_1", "complete msg_0"]
    assert (run.result.outcome, run.result.severity) == (Outcome.DELIVERED, "INFO")


async def test_a_conflict_that_svix_cannot_show_is_sent_again() -> None:
    """Two first events raced to create one application."""
    run = await deliver(CONFLICT, NO_MESSAGE, ACCEPTED)
    assert run.log == ["claim evt_1", "send key", "find evt_1", "send key", "complete msg_1"]
    assert run.pacer.delays == [0, 0, 0.2]


async def test_a_message_found_after_our_own_server_error_needs_a_look() -> None:
    """An open-source Svix can store a message without queueing it."""
    run = await deliver(BROKEN, CONFLICT, ACCEPTED)
    assert run.result.outcome is Outcome.DELIVERED
    assert (run.result.detail, run.result.severity) == ("fanout_unconfirmed", "WARNING")


@pytest.mark.parametrize("pushed", [True, False])
async def test_our_own_fault_is_never_the_events(pushed: bool) -> None:  # noqa: FBT001 - a case
    """It is released and waits in Pub/Sub; somebody is called."""
    run = await deliver(UNAUTHORISED, pushed=pushed)
    assert run.log == ["claim evt_1", "send key", "release"]
    assert (run.result.status, run.result.severity) == (500, "CRITICAL")


async def test_a_rejected_push_is_released_parked_and_acknowledged() -> None:
    """It would only ever come back to be rejected again."""
    run = await deliver(REJECTED)
    assert run.log == ["claim evt_1", "send key", "release", "park rejected"]
    assert run.result.status == 200
    (letter,) = run.ledger.letters
    assert run.result.dead_letter == letter.id
    assert (letter.project, letter.event_id, letter.event_type) == ("acme", "evt_1", "user.created")
    assert (letter.data, letter.message_id, letter.svix_status) == (b"{}", "77", 422)
    assert json.loads(letter.attributes) == {"a": "b"}
    assert letter.detail == "Svix: 422 body.payload"


async def test_a_rejected_event_posted_by_hand_is_told_and_not_parked() -> None:
    """Whoever posted it is there to read it."""
    run = await deliver(REJECTED, pushed=False)
    assert run.log == ["claim evt_1", "send key", "release"]
    assert (run.result.status, run.result.dead_letter) == (422, None)


async def test_what_cannot_be_parked_is_not_acknowledged() -> None:
    """Nothing is lost: Pub/Sub keeps it."""
    run = await deliver(REJECTED, fails={"park": LedgerUnavailable("down")})
    assert run.result.status == 500
    assert "could not be parked" in (run.result.detail or "")


async def test_an_unknown_application_is_parked_where_none_are_created() -> None:
    """It waits for someone to create it."""
    run = await deliver(NO_APPLICATION, create_applications=False)
    assert run.ledger.letters[0].detail == "unknown_application"
    assert run.result.outcome is Outcome.REJECTED


async def test_a_ledger_that_cannot_claim_stops_the_delivery() -> None:
    """Nothing is sent that could not be recorded."""
    run = await deliver(fails={"claim": LedgerUnavailable("down")})
    assert run.log == ["claim evt_1"]
    assert (run.result.status, run.result.severity) == (500, "ERROR")


async def test_what_is_sent_but_not_recorded_is_not_acknowledged() -> None:
    """The redelivery settles it; the log has Svix's id."""
    run = await deliver(ACCEPTED, fails={"complete": LedgerUnavailable("down")})
    assert run.log == ["claim evt_1", "send key", "complete msg_1"]
    assert (run.result.outcome, run.result.severity) == (Outcome.UNAVAILABLE, "ERROR")
    assert run.result.svix_message_id == "msg_1"


async def test_a_claim_that_passed_on_is_its_successors_to_settle() -> None:
    """Fencing: we neither complete nor acknowledge."""
    run = await deliver(ACCEPTED, fails={"complete": ClaimLost()})
    assert run.result.outcome is Outcome.IN_PROGRESS


@pytest.mark.parametrize("failure", [ClaimLost(), LedgerUnavailable("down")])
async def test_a_release_that_fails_changes_no_answer(failure: Exception) -> None:
    """The lease frees the claim."""
    run = await deliver(UNAUTHORISED, fails={"release": failure})
    assert run.result.outcome is Outcome.MISCONFIGURED


async def test_a_cancelled_delivery_reports_its_turn_and_releases_its_claim() -> None:
    """At the end of a shutdown, the redelivery need not wait for the lease."""
    log: list[str] = []
    ledger = Ledger(claim(), log)
    pacer = ScriptedPacer(1, log)
    delivery = Delivery(ledger, Sender([asyncio.CancelledError()], log), pacer, lambda: 0.0)
    payload: dict[str, Any] = {}
    event = Event("evt_1", "user.created", "acme", payload, "0" * 64, Source())
    with pytest.raises(asyncio.CancelledError):
        await delivery.deliver(event, DEADLINE)
    assert log == ["claim evt_1", "send key", "release"]
    assert pacer.reports == [SILENT]


async def test_no_result_holds_any_of_the_payload() -> None:
    """Whatever the outcome."""
    scripts: Iterable[tuple[Answer, ...]] = [
        (ACCEPTED,),
        (REJECTED,),
        (UNAUTHORISED,),
        (BROKEN, CONFLICT, ACCEPTED),
    ]
    for script in scripts:
        assert "hunter2" not in repr((await deliver(*script)).result)
