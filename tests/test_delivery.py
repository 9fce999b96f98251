"""The protocol's decisions, one at a time. tests/simulation runs them in every interleaving."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from relay.config import ATTEMPT_SECONDS
from relay.delivery import Delivery, GiveUp, History, Retry, Settle, what_next
from relay.envelope import Event, Source
from relay.ledger import (
    LEASE_SECONDS,
    Claim,
    ClaimLost,
    DeadLetter,
    Duplicate,
    InProgress,
    LedgerMisconfigured,
    LedgerUnavailable,
    Record,
    State,
)
from relay.outcome import Answer, Call, Outcome, Remark, Result, Verdict
from relay.pacing import NoTurn, Pacer, Waiter
from relay.waits import Waits

HOUR = 3600.0  # seconds

SEND, ASK = Call.SEND, Call.ASK
ACCEPTED = Answer(SEND, Verdict.ACCEPTED, 202, message_id="msg_1")
BROKEN_OFF = Answer(SEND, Verdict.BROKEN_OFF, 202)
LIMITED = Answer(SEND, Verdict.RATE_LIMITED, 429, retry_after=7)
CONFLICT = Answer(SEND, Verdict.CONFLICT, 409, code="conflict")
NO_APPLICATION = Answer(SEND, Verdict.UNAVAILABLE, 404, code="not_found")
BROKEN = Answer(SEND, Verdict.UNAVAILABLE, 500)
SILENT = Answer(SEND, Verdict.UNAVAILABLE, failure="no answer in 10 s")
REJECTED = Answer(SEND, Verdict.REJECTED, 422, locs=("body.payload",))
UNAUTHORISED = Answer(SEND, Verdict.MISCONFIGURED, 401, code="authentication_failed")
FOUND = Answer(ASK, Verdict.ACCEPTED, 200, message_id="msg_0")
MISSING = Answer(ASK, Verdict.MISSING, 404, code="not_found")
UNASKED = Answer(ASK, Verdict.UNAVAILABLE, 503)
ASK_LIMITED = Answer(ASK, Verdict.RATE_LIMITED, 429)
ASK_CONFLICT = Answer(ASK, Verdict.CONFLICT, 409)
ASK_REJECTED = Answer(ASK, Verdict.REJECTED, 422)
ASK_UNAUTHORISED = Answer(ASK, Verdict.MISCONFIGURED, 401)

NEW, SENT = History(), History(has_sent=True)
TWO_CONFLICTS = History(has_sent=True, conflicts=2, first_conflict_at=95.0)
NOW = 100.0
BUDGET = 240.0


@pytest.mark.parametrize(
    ("answer", "history", "pushed", "expected"),
    [
        (ACCEPTED, SENT, True, Settle(fanout_confirmed=True)),
        (BROKEN_OFF, SENT, True, Retry(ASK)),
        (CONFLICT, SENT, True, Retry(ASK)),
        (LIMITED, SENT, True, Retry(SEND)),
        (BROKEN, SENT, True, Retry(SEND, back_off=True)),
        (NO_APPLICATION, SENT, True, Retry(SEND, back_off=True)),
        (REJECTED, SENT, True, GiveUp(Outcome.REJECTED)),
        (REJECTED, SENT, False, GiveUp(Outcome.REJECTED)),
        (FOUND, SENT, True, Settle(fanout_confirmed=False)),
        (FOUND, History(saw_acceptance=True), True, Settle(fanout_confirmed=True)),
        (MISSING, NEW, True, Retry(SEND)),
        (MISSING, SENT, True, Retry(SEND, back_off=True)),
        (MISSING, TWO_CONFLICTS, True, GiveUp(Outcome.CONFLICT)),
        (MISSING, History(conflicts=1, first_conflict_at=0.0), True, Retry(SEND)),
        (
            MISSING,
            History(has_sent=True, conflicts=2, first_conflict_at=95.1),
            True,
            Retry(SEND, back_off=True),
        ),
        (ASK_LIMITED, SENT, True, Retry(ASK)),
        (UNASKED, SENT, True, Retry(ASK, back_off=True)),
        (ASK_CONFLICT, SENT, True, Retry(ASK, back_off=True)),
        (ASK_REJECTED, SENT, True, Retry(ASK, back_off=True)),
        (UNAUTHORISED, SENT, True, Retry(SEND, back_off=True)),
        (UNAUTHORISED, SENT, False, GiveUp(Outcome.MISCONFIGURED)),
        (ASK_UNAUTHORISED, SENT, True, Retry(ASK, back_off=True)),
        (ASK_UNAUTHORISED, SENT, False, GiveUp(Outcome.MISCONFIGURED)),
    ],
)
def test_what_next_follows_the_table(
    answer: Answer,
    history: History,
    pushed: bool,  # noqa: FBT001 - a case
    expected: Settle | Retry | GiveUp,
) -> None:
    assert what_next(answer, history, NOW, pushed=pushed) == expected


def test_the_history_counts_conflicts_from_the_first() -> None:
    """An earlier question says nothing about how long a conflict has lasted."""
    history = NEW
    for now, answer in enumerate((MISSING, CONFLICT, MISSING, BROKEN_OFF, CONFLICT, MISSING)):
        history = history.after(answer, float(now))
    assert history == History(
        has_sent=True, saw_acceptance=True, conflicts=2, first_conflict_at=1.0
    )


def test_a_send_without_a_usable_answer_ends_the_count_of_conflicts() -> None:
    """Svix may still be working on that send, and answer the next one 409 for as long."""
    history = NEW
    for now, answer in enumerate((CONFLICT, MISSING, BROKEN, LIMITED, CONFLICT)):
        history = history.after(answer, float(now))
    assert history == History(has_sent=True, conflicts=1, first_conflict_at=4.0)


# -- the loop


@dataclass
class Ledger:
    """Answers claims from a script, logs each call, and fails where the script says so."""

    claims: list[Claim | Duplicate | InProgress | Exception]
    log: list[str]
    fails: dict[str, list[Exception]] = field(default_factory=dict)
    records: list[Record | None] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)

    def _note(self, what: str) -> None:
        self.log.append(what)
        if failures := self.fails.get(what.split(maxsplit=1)[0]):
            raise failures.pop(0) if len(failures) > 1 else failures[0]

    async def record(self, key: str) -> Record | None:
        self._note("look")
        return self.records.pop(0) if self.records else None

    async def claim(
        self, event: Event, *, previous: Claim | None = None
    ) -> Claim | Duplicate | InProgress:
        self._note("claim" if previous is None else f"claim after {previous.token}")
        claim = self.claims.pop(0) if len(self.claims) > 1 else self.claims[0]
        if isinstance(claim, Exception):
            raise claim
        return claim

    async def complete(
        self, claim: Claim, svix_message_id: str | None, *, fanout_confirmed: bool
    ) -> None:
        self._note(f"complete {svix_message_id}" + ("" if fanout_confirmed else " unconfirmed"))

    async def release(self, claim: Claim) -> Claim:
        self._note("release")
        return claim

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

    async def _next(self, what: str) -> Answer:
        self.log.append(what)
        await asyncio.sleep(0)  # a call takes time
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def send(self, _event: Event, idempotency_key: str) -> Answer:
        return await self._next("send")

    async def find(self, _event: Event) -> Answer:
        return await self._next("ask")


@dataclass
class ScriptedTurn:
    """Records how it is used."""

    log: list[str]
    superseded: bool = False
    begun: bool = False
    spent: bool = False

    def begin(self) -> None:
        self.begun = True

    def report(self, answer: Answer) -> None:
        assert self.begun

    def ledger_failed(self) -> None:
        self.spent = True


@dataclass
class ScriptedNacks:
    """Permits a nack before the deadline, or none if `permits` is False."""

    log: list[str]
    permits: bool = True

    async def acquire(self, _until: float) -> bool:
        self.log.append("wait for a nack")
        return self.permits

    async def space(self, deadline: float) -> None:
        await self.acquire(deadline)


@dataclass
class ScriptedPacer:
    """Gives this many turns, then raises NoTurn."""

    turns: int
    log: list[str]
    waits: bool = False
    superseded: list[bool] = field(default_factory=list)
    others_taken: bool = False
    given: list[ScriptedTurn] = field(default_factory=list)
    waiters: list[Waiter] = field(default_factory=list)
    no_turn_outcome: Outcome = Outcome.RATE_LIMITED
    permits_nacks: bool = True

    def __post_init__(self) -> None:
        self.nacks = ScriptedNacks(self.log, self.permits_nacks)

    def must_wait(self, waiter: Waiter) -> bool:
        return self.waits

    def serves_others_since(self, project: str, since: float) -> bool:
        return self.others_taken

    @contextlib.asynccontextmanager
    async def turn(self, waiter: Waiter) -> AsyncIterator[ScriptedTurn]:
        self.waiters.append(waiter)
        if not self.turns:
            raise NoTurn(self.no_turn_outcome, 12.0, "no turn in time")
        self.turns -= 1
        turn = ScriptedTurn(self.log, self.superseded.pop(0) if self.superseded else False)
        self.given.append(turn)
        yield turn


@dataclass
class Run:
    """One delivery, and everything that it did."""

    result: Result
    log: list[str]
    pacer: ScriptedPacer
    ledger: Ledger
    sleeps: list[float]


def claim(age: float = 0.0, attempts: int = 1) -> Claim:
    """Our own claim."""
    return Claim("key", "token", object(), attempts, age)


def record(state: State, *, lease: float = LEASE_SECONDS, payload_sha256: str = "0" * 64) -> Record:
    """An event's record that was written just now."""
    now = datetime.now(UTC)
    return Record(
        project="acme",
        event_id="evt_1",
        event_type="user.created",
        state=state,
        claim="another's",
        lease=lease,
        attempts=1,
        payload_sha256=payload_sha256,
        first_claimed_at=now,
        touched_at=now,
        read_at=now,
        svix_message_id="msg_0",
    )


def an_event(*, pushed: bool = True) -> Event:
    """The event that is delivered."""
    source = Source(pushed=pushed, data=b"{}", message_id="77", attributes={"a": "b"})
    return Event(
        id="evt_1",
        type="user.created",
        project="acme",
        text=b'{"data":"hunter2"}',
        tags=(),
        payload_sha256="0" * 64,
        source=source,
    )


async def deliver(
    *answers: Answer | BaseException,
    claims: list[Claim | Duplicate | InProgress | Exception] | None = None,
    turns: int = 100,
    pushed: bool = True,
    fails: dict[str, list[Exception]] | None = None,
    records: list[Record | None] | None = None,
    ask_first: bool = False,
    **pacing: Any,
) -> Run:
    """Deliver one event to a Svix with these answers. Waits only move the test's clock."""
    log: list[str] = []
    sleeps: list[float] = []
    now = [0.0]

    async def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        now[0] += seconds
        await asyncio.sleep(0)

    ledger = Ledger(claims or [claim()], log, fails or {}, records or [])
    pacer = ScriptedPacer(turns, log, **pacing)
    delivery = Delivery(
        ledger=ledger,
        sender=Sender(list(answers), log),
        pacer=cast("Pacer", pacer),
        waits=Waits(lambda: now[0], sleep, lambda low, _high: low),
        ask_first=ask_first,
    )
    result = await delivery.deliver(an_event(pushed=pushed), 0.0, BUDGET)
    return Run(result, log, pacer, ledger, sleeps)


async def test_an_event_is_claimed_sent_and_settled_in_this_order() -> None:
    run = await deliver(ACCEPTED)
    assert run.log == ["claim", "send", "complete msg_1"]
    assert run.result == Result(
        outcome=Outcome.DELIVERED, svix_status=202, svix_message_id="msg_1", attempts=1
    )


async def test_the_last_turn_leaves_time_for_a_whole_attempt() -> None:
    """The claim, the call and the settlement must end within the budget."""
    (waiter,) = (await deliver(ACCEPTED)).pacer.waiters
    assert waiter.last_turn == BUDGET - ATTEMPT_SECONDS


async def test_each_attempt_has_a_turn_and_a_claim_of_its_own() -> None:
    """A waiting event holds neither a turn nor a claim."""
    run = await deliver(LIMITED, BROKEN, ACCEPTED)
    attempt = ["claim after token", "send"]
    assert run.log == [
        *("claim", "send", "release"),
        *(*attempt, "release"),
        *(*attempt, "complete msg_1"),
    ]
    assert len(run.pacer.given) == 3
    assert len(set(map(id, run.pacer.waiters))) == 1  # it keeps its place in the line


async def test_a_request_that_must_wait_reads_the_record_first() -> None:
    """A duplicate never waits, even while Svix refuses everything."""
    run = await deliver(waits=True, records=[record(State.DELIVERED)])
    assert run.log == ["look"]
    assert run.result.outcome is Outcome.DUPLICATE
    assert run.result.svix_message_id == "msg_0"


@pytest.mark.parametrize("fails", [{}, {"look": [LedgerUnavailable("down")]}])
async def test_a_read_that_finds_nothing_or_fails_changes_nothing(
    fails: dict[str, list[Exception]],
) -> None:
    run = await deliver(ACCEPTED, waits=True, fails=fails)
    assert run.log == ["look", "claim", "send", "complete msg_1"]


async def test_a_duplicate_gives_its_turn_back_unused() -> None:
    run = await deliver(claims=[Duplicate("msg_1", payload_changed=False, attempts=1)])
    assert run.log == ["claim"]
    assert not run.pacer.given[0].begun
    assert run.result.outcome is Outcome.DUPLICATE
    assert run.result.severity == "INFO"
    assert run.result.svix_message_id == "msg_1"


async def test_a_duplicate_with_another_payload_has_a_remark() -> None:
    """The publisher is at fault. The event id alone still decides that it is a duplicate."""
    run = await deliver(claims=[Duplicate("msg_1", payload_changed=True, attempts=1)])
    assert (run.result.status, run.result.severity) == (200, "WARNING")
    assert run.result.remark is Remark.PAYLOAD_CHANGED


async def test_a_live_claim_is_polled_until_the_event_is_delivered() -> None:
    """A push that finds a live claim is not nacked."""
    busy = record(State.CLAIMED)
    run = await deliver(
        claims=[InProgress(LEASE_SECONDS, 1)],
        records=[busy, busy, busy, busy, busy, busy, record(State.DELIVERED)],
    )
    assert run.log == ["claim", *["look"] * 7]
    assert run.sleeps == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert run.result.outcome is Outcome.DUPLICATE


async def test_an_event_that_was_released_meanwhile_is_claimed() -> None:
    run = await deliver(
        ACCEPTED, claims=[InProgress(LEASE_SECONDS, 1), claim()], records=[record(State.RELEASED)]
    )
    assert run.log == ["claim", "look", "claim", "send", "complete msg_1"]
    assert run.result.outcome is Outcome.DELIVERED


async def test_a_dead_claim_is_taken_over_when_its_lease_ends() -> None:
    """After a crash, an event waits no longer than its lease."""
    run = await deliver(ACCEPTED, claims=[InProgress(0.1, 1), claim()])
    assert run.sleeps == [0.1]
    assert run.result.outcome is Outcome.DELIVERED


async def test_a_claim_that_outlives_the_budget_is_in_progress() -> None:
    run = await deliver(
        claims=[InProgress(LEASE_SECONDS, 1)], records=[record(State.CLAIMED) for _ in range(100)]
    )
    assert run.result.outcome is Outcome.IN_PROGRESS
    assert sum(run.sleeps) == pytest.approx(BUDGET)


async def test_an_event_with_an_old_claim_is_asked_for_before_it_is_sent() -> None:
    """Svix may have forgotten the idempotency key of the earlier attempt."""
    run = await deliver(FOUND, claims=[claim(11 * HOUR + 1, 2)])
    assert run.log == ["claim", "ask", "complete msg_0 unconfirmed"]
    assert run.result.remark is Remark.FANOUT_UNCONFIRMED


async def test_an_event_with_a_younger_claim_is_sent_without_asking() -> None:
    """Svix still recognises the idempotency key."""
    run = await deliver(ACCEPTED, claims=[claim(11 * HOUR - 60, 2)])
    assert run.log == ["claim", "send", "complete msg_1"]


async def test_an_event_with_an_old_claim_is_sent_once_svix_says_that_it_has_no_message() -> None:
    """The event is not sent earlier, however often asking fails."""
    run = await deliver(UNASKED, ASK_LIMITED, MISSING, ACCEPTED, claims=[claim(12 * HOUR)])
    calls = [entry for entry in run.log if entry in {"ask", "send"}]
    assert calls == ["ask", "ask", "ask", "send"]


async def test_a_replay_asks_first_however_young_the_event() -> None:
    run = await deliver(MISSING, ACCEPTED, ask_first=True)
    assert [entry for entry in run.log if entry in {"ask", "send"}] == ["ask", "send"]
    assert run.sleeps == []  # nothing has failed


async def test_a_message_found_by_asking_is_delivered_with_a_remark() -> None:
    """Svix may have crashed between storing the message and queueing it.

    Then no customer gets the message.
    """
    run = await deliver(SILENT, CONFLICT, FOUND)
    assert run.log[-1] == "complete msg_0 unconfirmed"
    assert (run.result.status, run.result.severity) == (200, "WARNING")
    assert run.result.remark is Remark.FANOUT_UNCONFIRMED


async def test_an_acceptance_that_was_seen_is_confirmed_by_asking() -> None:
    """The 202 says that Svix has queued the message. Only the body was lost."""
    run = await deliver(BROKEN_OFF, FOUND)
    assert run.log == ["claim", "send", "release", "claim after token", "ask", "complete msg_0"]
    assert run.result.remark is None


async def test_an_event_with_an_unexplained_conflict_is_parked() -> None:
    """It is parked after the second conflict, at least 5 s after the first.

    Otherwise the relay would ask for ever.
    """
    run = await deliver(*[CONFLICT, MISSING] * 20)
    assert run.result.outcome is Outcome.CONFLICT
    assert run.result.dead_letter is not None
    assert sum(run.sleeps) >= 5
    assert run.log.count("ask") == 6  # 0.2 + 0.4 + 0.8 + 1.6 + 3.2 s apart


async def test_back_off_doubles_up_to_20_seconds_and_a_429_causes_none() -> None:
    run = await deliver(LIMITED, *[BROKEN] * 9, ACCEPTED)
    assert run.sleeps == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 20.0, 20.0]


@pytest.mark.parametrize(
    ("answer", "outcome", "detail"),
    [
        (LIMITED, Outcome.RATE_LIMITED, "Svix: 429"),
        (BROKEN, Outcome.UNAVAILABLE, "Svix: 500"),
        (SILENT, Outcome.UNAVAILABLE, "Svix: no answer in 10 s"),
        (CONFLICT, Outcome.UNAVAILABLE, "Svix: 409 conflict"),
        (NO_APPLICATION, Outcome.UNAVAILABLE, "Svix: 404 not_found"),
        (UNAUTHORISED, Outcome.MISCONFIGURED, "Svix: 401 authentication_failed"),
    ],
)
async def test_when_no_turn_is_left_the_last_failure_is_named(
    answer: Answer, outcome: Outcome, detail: str
) -> None:
    run = await deliver(answer, turns=1)
    assert run.log == ["claim", "send", "release", "wait for a nack"]
    assert (run.result.outcome, run.result.detail) == (outcome, detail)
    assert (run.result.svix_status, run.result.retry_after) == (answer.status, 12.0)
    assert run.result.dead_letter is None


@pytest.mark.parametrize("outcome", [Outcome.RATE_LIMITED, Outcome.UNAVAILABLE])
async def test_without_any_turn_the_pacer_says_why(outcome: Outcome) -> None:
    run = await deliver(turns=0, no_turn_outcome=outcome)
    assert run.log == ["wait for a nack"]
    assert (run.result.outcome, run.result.detail) == (outcome, "no turn in time")


async def test_what_was_posted_by_hand_is_answered_at_once() -> None:
    """Its answer is not a nack, so it need not wait until a nack is allowed."""
    assert (await deliver(turns=0, pushed=False)).log == []


async def test_a_turn_that_a_pause_has_superseded_is_not_used() -> None:
    """The claim is released, and the request goes back to its place in the line."""
    run = await deliver(ACCEPTED, superseded=[True, False])
    assert run.log == ["claim", "release", "claim after token", "send", "complete msg_1"]
    assert [turn.begun for turn in run.pacer.given] == [False, True]


async def test_if_the_ledger_does_not_answer_the_turn_is_used_up_and_the_place_kept() -> None:
    down = LedgerUnavailable("down")
    run = await deliver(ACCEPTED, claims=[down, down, claim()])
    assert run.log == ["claim", "claim", "claim", "send", "complete msg_1"]
    assert [turn.spent for turn in run.pacer.given] == [True, True, False]
    assert run.result.outcome is Outcome.DELIVERED


async def test_if_the_ledger_stays_down_the_request_ends_when_no_turn_is_left() -> None:
    run = await deliver(claims=[LedgerUnavailable("down")], turns=3)
    assert run.result.outcome is Outcome.LEDGER_UNAVAILABLE
    assert (run.result.status, run.result.severity) == (500, "ERROR")


@pytest.mark.parametrize(("pushed", "claims"), [(True, 3), (False, 1)])
async def test_refused_credentials_are_misconfigured(
    pushed: bool,  # noqa: FBT001 - a case
    claims: int,
) -> None:
    """A person who posts by hand is answered at once. A push is tried again."""
    run = await deliver(claims=[LedgerMisconfigured("who are you?")], turns=3, pushed=pushed)
    assert run.log.count("claim") == claims
    assert (run.result.status, run.result.severity) == (500, "CRITICAL")


async def test_an_event_posted_by_hand_is_answered_at_once_if_we_are_misconfigured() -> None:
    run = await deliver(UNAUTHORISED, pushed=False)
    assert run.log == ["claim", "send", "release"]
    assert (run.result.status, run.result.severity) == (500, "CRITICAL")


async def test_a_rejected_push_is_released_parked_and_acknowledged() -> None:
    """Svix would reject each redelivery as well."""
    run = await deliver(REJECTED)
    assert run.log == ["claim", "send", "release", "park rejected"]
    assert run.result.status == 200
    (letter,) = run.ledger.letters
    assert run.result.dead_letter == letter.id
    assert (letter.project, letter.event_id, letter.event_type) == ("acme", "evt_1", "user.created")
    assert (letter.data, letter.message_id, letter.svix_status) == (b"{}", "77", 422)
    assert json.loads(letter.attributes) == {"a": "b"}
    assert letter.detail == "Svix: 422 body.payload"


async def test_a_rejected_event_posted_by_hand_is_answered_and_not_parked() -> None:
    """The person who posted it reads the answer."""
    run = await deliver(REJECTED, pushed=False)
    assert run.log == ["claim", "send", "release"]
    assert (run.result.status, run.result.dead_letter) == (422, None)


async def test_parking_is_tried_until_the_budget_is_over() -> None:
    """Then the push is nacked, so that Pub/Sub keeps the event."""
    run = await deliver(REJECTED, fails={"park": [LedgerUnavailable("down")]})
    assert (run.result.outcome, run.result.status) == (Outcome.LEDGER_UNAVAILABLE, 500)
    assert sum(run.sleeps) == pytest.approx(BUDGET)
    assert "could not be parked" in (run.result.detail or "")
    assert run.log[-1] == "wait for a nack", "this nack was not spaced"


async def test_settling_is_tried_again_and_nothing_is_sent_twice() -> None:
    down = LedgerUnavailable("down")
    run = await deliver(ACCEPTED, fails={"complete": [down, down, ClaimLost("gone")]},
                        records=[record(State.DELIVERED)])  # fmt: skip
    assert run.log == ["claim", "send", *["complete msg_1"] * 3, "look"]
    assert run.result.outcome is Outcome.DUPLICATE


async def test_an_event_that_was_sent_but_not_recorded_is_not_acknowledged() -> None:
    """The redelivery settles it. The log has Svix's message id."""
    run = await deliver(ACCEPTED, fails={"complete": [LedgerUnavailable("down")]})
    assert run.log.count("send") == 1
    assert (run.result.outcome, run.result.severity) == (Outcome.LEDGER_UNAVAILABLE, "ERROR")
    assert run.result.svix_message_id == "msg_1"


async def test_a_claim_that_was_taken_over_is_settled_by_its_new_owner() -> None:
    """Fencing: the old owner can't settle the event. It acknowledges once the new owner has."""
    run = await deliver(
        ACCEPTED,
        fails={"complete": [ClaimLost("gone")]},
        records=[record(State.CLAIMED), record(State.DELIVERED)],
    )
    assert run.log == ["claim", "send", "complete msg_1", "look", "look"]
    assert run.result.outcome is Outcome.DUPLICATE


async def test_if_the_claim_to_release_was_taken_over_the_record_is_polled() -> None:
    run = await deliver(
        BROKEN, fails={"release": [ClaimLost("gone")]}, records=[record(State.DELIVERED)]
    )
    assert run.log == ["claim", "send", "release", "look"]
    assert run.result.outcome is Outcome.DUPLICATE


async def test_a_lost_release_does_not_block_the_next_claim() -> None:
    """The next claim names the claim before it, so the ledger knows that the record is ours."""
    run = await deliver(BROKEN, ACCEPTED, fails={"release": [LedgerUnavailable("down")]})
    assert run.log[3] == "claim after token"
    assert run.result.outcome is Outcome.DELIVERED


async def test_poison_is_nacked_after_half_its_budget_once_a_nack_is_permitted() -> None:
    """A request that can't succeed must not hold a place for its whole budget."""
    run = await deliver(*[BROKEN] * 30, others_taken=True)
    assert BUDGET / 2 <= sum(run.sleeps) < BUDGET / 2 + 20
    assert run.log[-2:] == ["release", "wait for a nack"]
    assert (run.result.outcome, run.result.detail) == (Outcome.UNAVAILABLE, "Svix: 500")


async def test_if_svix_takes_no_event_at_all_an_event_waits_until_its_last_turn() -> None:
    """In this case Svix is down, and the event is not the cause."""
    run = await deliver(*[BROKEN] * 16, turns=16)
    assert sum(run.sleeps) > BUDGET / 2 + 20


async def test_a_cancelled_attempt_releases_its_claim() -> None:
    """After a shutdown, the redelivery need not wait for the lease."""
    log: list[str] = []
    delivery = Delivery(
        ledger=Ledger([claim()], log),
        sender=Sender([asyncio.CancelledError()], log),
        pacer=cast("Pacer", ScriptedPacer(1, log)),
    )
    with pytest.raises(asyncio.CancelledError):
        await delivery.deliver(an_event(), 0.0, BUDGET)
    assert log == ["claim", "send", "release"]
    assert not delivery.attempting


async def test_no_attempt_begins_once_the_process_is_about_to_end() -> None:
    log: list[str] = []
    delivery = Delivery(
        ledger=Ledger([claim()], log),
        sender=Sender([], log),
        pacer=cast("Pacer", ScriptedPacer(1, log)),
    )
    delivery.closing = True
    result = await delivery.deliver(an_event(), 0.0, BUDGET)
    assert (result.outcome, result.detail) == (Outcome.UNAVAILABLE, "shutting down")
    assert "claim" not in log


async def test_within_a_process_one_request_at_a_time_works_on_an_event() -> None:
    """Of a hundred pushes of one event, one is delivered, and ninety-nine are duplicates."""
    log: list[str] = []
    ledger = Ledger([claim()], log, records=[record(State.DELIVERED) for _ in range(99)])
    delivery = Delivery(
        ledger=ledger,
        sender=Sender([ACCEPTED], log),
        pacer=cast("Pacer", ScriptedPacer(1, log)),
    )
    now = delivery.waits.clock()
    deliveries = (delivery.deliver(an_event(), now, now + BUDGET) for _ in range(100))
    results = await asyncio.gather(*deliveries)
    outcomes = [result.outcome for result in results]
    assert outcomes.count(Outcome.DELIVERED) == 1
    assert outcomes.count(Outcome.DUPLICATE) == 99
    assert log.count("claim") == 1


async def test_if_the_other_request_fails_the_waiting_one_works_on_the_event() -> None:
    log: list[str] = []
    ledger = Ledger([claim()], log, records=[record(State.RELEASED)])
    delivery = Delivery(
        ledger=ledger,
        sender=Sender([REJECTED, ACCEPTED], log),
        pacer=cast("Pacer", ScriptedPacer(2, log)),
    )
    now = delivery.waits.clock()
    first, second = await asyncio.gather(
        delivery.deliver(an_event(pushed=False), now, now + BUDGET),
        delivery.deliver(an_event(pushed=False), now, now + BUDGET),
    )
    assert (first.outcome, second.outcome) == (Outcome.REJECTED, Outcome.DELIVERED)


async def test_no_result_holds_any_of_the_payload() -> None:
    scripts: Iterable[tuple[Answer, ...]] = [
        (ACCEPTED,),
        (REJECTED,),
        (BROKEN, CONFLICT, FOUND),
    ]
    for script in scripts:
        assert "hunter2" not in repr((await deliver(*script)).result)
