"""The protocol: an event is in Svix once, in effect, and acknowledged only when that is recorded.

A delivery is a loop of attempts until one says what becomes of the event. An attempt is one turn,
one claim, one call to Svix and one settle:

    wait for a turn -> claim -> send (or ask for) the message -> settle: delivered or released

`what_next` is the table of what comes after each answer of Svix. Before the call:

    the claim says                 next
    ours                           call Svix; if a pause has begun meanwhile, release and wait again
    delivered before               the turn goes to the next in line; `duplicate`
    in progress elsewhere          the same; look again until it is delivered or free
    the ledger does not answer     the turn is spent; the pacer holds claims back for a while

A crash is healed by whoever delivers the event next:

    the function dies...                         then
    while it waits                               nothing was claimed: a redelivery goes on at once
    between claim and send                       the lease runs out (30 s), a redelivery sends
    between Svix's acceptance and settle         the resend carries the same idempotency key
    the same, redelivered over 11 hours later    the next claim asks Svix before it sends
    after settle, before the answer              the redelivery is a duplicate

Does no I/O itself: the ledger, the sender, the pacer and the clock are passed in. Times are seconds
of that clock.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Protocol

from relay import results
from relay.config import ATTEMPT_SECONDS
from relay.envelope import Event
from relay.ledger import (
    Claim,
    ClaimLost,
    Duplicate,
    InProgress,
    Ledger,
    LedgerMisconfigured,
    LedgerUnavailable,
    key_of,
)
from relay.outcome import (
    PARKED_OUTCOMES,
    Answer,
    Call,
    Outcome,
    Result,
    Verdict,
)
from relay.pacing import NoTurn, Pacer, Turn, Waiter
from relay.parking import Parking
from relay.waits import REAL_TIME, Waits

ASK_FIRST_AGE = timedelta(hours=11)
"""Svix forgets an idempotency key after 12 h; the hour between is for waiting and for clocks."""

UNEXPLAINED_CONFLICTS = 2
UNEXPLAINED_AFTER_SECONDS = 5.0
"""Two first events of a project race to create its application, and one gets a 409 that asking
can't explain; Svix holds an idempotency lock for 5 s. A conflict that outlasts both is another's:
the id is taken by something that we can't see."""

_FIRST_BACK_OFF, _LONGEST_BACK_OFF = 0.2, 20.0
"""Seconds between the attempts of one event, doubled with each: waiting costs nobody anything,
while a nack is charged to the whole subscription."""

_FIRST_LOOK, _LONGEST_LOOK = 0.2, 5.0
"""Seconds between looks at an event that another delivery is working on, doubled with each."""

_HOPELESS_FAILURES = 3
"""An event that failed so often, while others were taken, is itself the reason."""


class Sender(Protocol):
    """One call to Svix, its answer classified; neither raises for anything Svix may do."""

    async def send(self, event: Event, idempotency_key: str) -> Answer:
        """Create the event's message."""

    async def find(self, event: Event) -> Answer:
        """Ask for the event's message."""


# -- what comes next


@dataclass(frozen=True, slots=True)
class Settle:
    """Svix has the message: record the event as delivered."""

    fanout_confirmed: bool
    """Whether Svix was seen to accept it, and so has queued it for the customer's endpoints."""


@dataclass(frozen=True, slots=True)
class Again:
    """Release the claim; the next attempt makes this call, at once or after a back-off."""

    call: Call
    back_off: bool = False


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Release the claim and end: another attempt would not help."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class History:
    """What one delivery has learnt from Svix's answers so far."""

    has_sent: bool = False
    saw_acceptance: bool = False
    """A 2xx came whose body broke off."""
    conflicts: int = 0
    first_asked_at: float | None = None

    def after(self, answer: Answer, now: float) -> "History":
        """The history with one more answer."""
        if answer.call is Call.ASK:
            return self if self.first_asked_at is not None else replace(self, first_asked_at=now)
        return replace(
            self,
            has_sent=True,
            saw_acceptance=self.saw_acceptance or answer.verdict is Verdict.BROKEN_OFF,
            conflicts=self.conflicts + (answer.verdict is Verdict.CONFLICT),
        )

    def has_unexplained_conflict(self, now: float) -> bool:
        """Whether Svix's conflicts are of something that asking will never show."""
        asked_long_ago = (
            self.first_asked_at is not None
            and now - self.first_asked_at >= UNEXPLAINED_AFTER_SECONDS
        )
        return self.conflicts >= UNEXPLAINED_CONFLICTS and asked_long_ago


def what_next(  # noqa: PLR0911 - a return for each row
    answer: Answer, history: History, now: float, *, pushed: bool
) -> Settle | Again | GiveUp:
    """What follows an answer of Svix. `history` includes it; the first matching row applies."""
    match answer.call, answer.verdict:
        case Call.SEND, Verdict.ACCEPTED:
            return Settle(fanout_confirmed=True)
        case Call.SEND, Verdict.BROKEN_OFF | Verdict.CONFLICT:
            return Again(Call.ASK)
        case Call.SEND, Verdict.REJECTED:
            return GiveUp(Outcome.REJECTED)
        case Call.ASK, Verdict.ACCEPTED:
            # A Svix that died between storing the message and queueing it never sends it on.
            return Settle(fanout_confirmed=history.saw_acceptance)
        case Call.ASK, Verdict.MISSING if history.has_unexplained_conflict(now):
            return GiveUp(Outcome.CONFLICT)
        case Call.ASK, Verdict.MISSING:
            # Not sent yet, nothing has failed: there is nothing to back off from.
            return Again(Call.SEND, back_off=history.has_sent)
        case _, Verdict.MISCONFIGURED if not pushed:
            return GiveUp(Outcome.MISCONFIGURED)  # whoever posted it can read the answer and act
        case call, Verdict.RATE_LIMITED:
            return Again(call)  # the pacer knows when
        case call, _:
            return Again(call, back_off=True)


# -- the loop


class Delivery:
    """Delivers events, one call of `deliver` each; any number may run at once.

    `ask_first`: ask Svix before anything is sent, however young the event. `observe` is told of
    each step of an event, for the debug log.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        sender: Sender,
        pacer: Pacer,
        waits: Waits = REAL_TIME,
        ask_first: bool = False,
        observe: Callable[[str, Event], None] = lambda _step, _event: None,
    ) -> None:
        self.ledger, self.sender, self.pacer = ledger, sender, pacer
        self.waits = waits
        self.parking = Parking(ledger, waits)
        self.ask_first = ask_first
        self.observe = observe
        self.closing = False
        """Whether the process is about to end: no attempt begins any more."""
        self.attempting: set[object] = set()
        """The owners of requests that hold a claim, or are about to learn whether they do."""
        self._under_way: dict[str, asyncio.Event] = {}

    async def deliver(
        self, event: Event, arrived_at: float, deadline: float, owner: object = None
    ) -> Result:
        """Bring one event into Svix by `deadline`, or say why not. Raises only if cancelled.

        `owner` is in `attempting` while an attempt is under way.
        """
        request = _Request(self, event, arrived_at, deadline, owner)
        result = await self._after_others(request)
        if result is None:
            ended = self._under_way[request.key] = asyncio.Event()
            try:
                result = await request.run()
            finally:
                del self._under_way[request.key]
                ended.set()
        if result.outcome in PARKED_OUTCOMES:
            return await self.parking.park(result, event.source, event.names, deadline)
        if event.source.pushed and not result.acknowledges and not request.may_nack:
            await self.pacer.nacks.space(deadline)
        return result

    async def _after_others(self, request: "_Request") -> Result | None:
        """Within this process an event is worked on by one request at a time.

        The others wait for that one, then look. None: this request's turn to work on it.
        """
        while (other := self._under_way.get(request.key)) is not None:
            try:
                async with asyncio.timeout(max(0.0, request.deadline - self.waits.clock())):
                    await other.wait()
            except TimeoutError:
                return results.in_progress(InProgress(timedelta(0), 0))
            if duplicate := await request.delivered_before():
                return duplicate
        return None


class _Request:
    """The loop of attempts for one event, and what it remembers."""

    def __init__(
        self, delivery: Delivery, event: Event, arrived_at: float, deadline: float, owner: object
    ) -> None:
        self.key = key_of(event.project, event.id)
        self.deadline = deadline
        self.may_nack = False
        """Whether the pacer's next spaced nack is ours already."""
        self._delivery = delivery
        self._event = event
        self._owner = owner
        self._half_time = (arrived_at + deadline) / 2
        self._waiter = Waiter(event.project, self.key, arrived_at, deadline - ATTEMPT_SECONDS)
        self._back_offs = delivery.waits.pauses(_FIRST_BACK_OFF, _LONGEST_BACK_OFF)
        self._history = History()
        self._next_call = Call.ASK if delivery.ask_first else Call.SEND
        self._claim: Claim | None = None
        """Our latest claim, as it was released; the ledger knows it if its release was lost."""
        self._last: Answer | LedgerUnavailable | None = None
        """What went wrong last."""
        self._failures = 0
        self._first_failure_at = 0.0
        self._waited = 0.0

    async def run(self) -> Result:
        """Attempt until one says what becomes of the event."""
        return self._counted(await self._run())

    async def _run(self) -> Result:
        delivery = self._delivery
        if delivery.pacer.must_wait(self._waiter) and (before := await self.delivered_before()):
            return before
        while not delivery.closing:
            came = await self._attempt()
            match came:
                case Result():
                    return came
                case InProgress():
                    if result := await self._wait_until_free(came):
                        return result
                case Again(back_off=True):
                    await self._back_off()
                    if self.may_nack:
                        return results.unsent(self._last)
        return results.unsent(None)

    async def delivered_before(self) -> Result | None:
        """Look whether the event was delivered; a look that fails is skipped."""
        with contextlib.suppress(LedgerUnavailable):
            record = await self._delivery.ledger.record(self.key)
            refusal = record.refusal(self._event) if record else None
            if isinstance(refusal, Duplicate):
                return results.duplicate(refusal)
        return None

    async def _attempt(self) -> Result | Again | InProgress:
        """One turn, one claim, one call, one settle."""
        delivery = self._delivery
        delivery.observe("waiting", self._event)
        asked_at = delivery.waits.clock()
        held: Claim | None = None
        try:
            async with delivery.pacer.turn(self._waiter) as turn:
                self._waited += delivery.waits.clock() - asked_at
                delivery.observe("turn", self._event)
                delivery.attempting.add(self._owner)
                claimed = await self._take_claim(turn)
                if not isinstance(claimed, Claim):
                    return claimed
                held = claimed
                answer = await self._call(turn)
            return await self._settle(held, answer)
        except NoTurn as no_turn:
            self._waited += delivery.waits.clock() - asked_at
            return results.unsent(self._last, no_turn)
        except asyncio.CancelledError:
            if held is not None:
                # The process ends: the redelivery should not have to wait for the lease.
                with contextlib.suppress(ClaimLost, LedgerUnavailable):
                    await delivery.ledger.release(held)
            raise
        finally:
            delivery.attempting.discard(self._owner)

    async def _take_claim(self, turn: Turn) -> Claim | Result | Again | InProgress:
        try:
            claim = await self._delivery.ledger.claim(self._event, previous=self._claim)
        except LedgerUnavailable as failure:
            turn.ledger_failed()
            self._last = failure
            if isinstance(failure, LedgerMisconfigured) and not self._event.source.pushed:
                return results.unsent(self._last)
            return Again(self._next_call)
        if isinstance(self._last, LedgerUnavailable):
            self._last = None  # it answers again
        match claim:
            case Duplicate():
                return results.duplicate(claim)
            case Claim():
                self._delivery.observe("claimed", self._event)
                if self._claim is None and claim.age >= ASK_FIRST_AGE:
                    self._next_call = Call.ASK
                self._claim = claim
        return claim

    async def _call(self, turn: Turn) -> Answer | None:
        """One call to Svix; None where a pause has begun since the turn was given."""
        if turn.superseded:
            return None
        delivery, event = self._delivery, self._event
        turn.begin()
        if self._next_call is Call.ASK:
            delivery.observe("asked", event)
            answer = await delivery.sender.find(event)
        else:
            delivery.observe("sent", event)
            answer = await delivery.sender.send(event, self.key)
        turn.report(answer)
        delivery.observe("answered", event)
        return answer

    async def _settle(self, claim: Claim, answer: Answer | None) -> Result | Again | InProgress:
        """Record what Svix said: delivered, or released for whoever comes next."""
        if answer is None:
            return await self._release(claim) or Again(self._next_call)
        now = self._delivery.waits.clock()
        self._history = self._history.after(answer, now)
        step = what_next(answer, self._history, now, pushed=self._event.source.pushed)
        if isinstance(step, Settle):
            return await self._complete(claim, answer, step)
        self._remember(answer)
        if taken_over := await self._release(claim):
            return taken_over
        if isinstance(step, GiveUp):
            return results.refused(step.outcome, answer)
        self._next_call = step.call
        return step

    async def _complete(self, claim: Claim, answer: Answer, step: Settle) -> Result | InProgress:
        """Record the event as delivered: only what is recorded is acknowledged.

        Tried until the deadline: each try has the same condition, so it is safe after the lease.
        """
        delivery = self._delivery
        confirmed = step.fanout_confirmed
        for pause in delivery.waits.pauses(_FIRST_LOOK, _LONGEST_LOOK):
            try:
                await delivery.ledger.complete(claim, answer.message_id, fanout_confirmed=confirmed)
            except ClaimLost:
                return InProgress(timedelta(0), claim.attempts)
            except LedgerUnavailable as failure:
                if delivery.closing or delivery.waits.clock() + pause >= self.deadline:
                    return results.unrecorded(answer, failure)
            else:
                delivery.observe("settled", self._event)
                return results.delivered(answer, fanout_confirmed=confirmed)
            await delivery.waits.sleep(pause)
        raise AssertionError  # there is always another pause

    async def _release(self, claim: Claim) -> InProgress | None:
        """Let whoever comes next claim the event at once; `InProgress` where somebody has."""
        try:
            self._claim = await self._delivery.ledger.release(claim)
        except ClaimLost:
            return InProgress(timedelta(0), claim.attempts)
        except LedgerUnavailable:
            return None  # our next claim takes it over by its token; others, after the lease
        self._delivery.observe("released", self._event)
        return None

    async def _wait_until_free(self, claimed: InProgress) -> Result | None:
        """Look again until the event is delivered, or its claim is free (None)."""
        delivery = self._delivery
        for pause in delivery.waits.pauses(_FIRST_LOOK, _LONGEST_LOOK):
            budget = self.deadline - delivery.waits.clock()
            if budget <= 0 or delivery.closing:
                break
            await delivery.waits.sleep(min(pause, claimed.lease_remaining.total_seconds(), budget))
            try:
                record = await delivery.ledger.record(self.key)
            except LedgerUnavailable:
                claimed = InProgress(timedelta(seconds=_LONGEST_LOOK), claimed.attempts)
                continue
            match record.refusal(self._event) if record else None:
                case None:
                    return None
                case Duplicate() as duplicate:
                    return results.duplicate(duplicate)
                case InProgress() as claimed:
                    pass  # by now
        return results.in_progress(claimed)

    async def _back_off(self) -> None:
        """Wait before the next attempt; where waiting is in vain, until the event may be nacked."""
        delivery, now = self._delivery, self._delivery.waits.clock()
        pause = min(next(self._back_offs), max(0.0, self._waiter.last_turn - now))
        is_hopeless = (
            self._event.source.pushed
            and self._failures >= _HOPELESS_FAILURES
            and delivery.pacer.others_taken_since(self._event.project, self._first_failure_at)
        )
        if is_hopeless and now >= self._half_time:
            self.may_nack = await delivery.pacer.nacks.wait(now + pause)
        else:
            await delivery.waits.sleep(pause)
        self._waited += delivery.waits.clock() - now

    def _remember(self, answer: Answer) -> None:
        self._last = answer
        if answer.verdict is Verdict.UNAVAILABLE:
            self._failures += 1
            if self._failures == 1:
                self._first_failure_at = self._delivery.waits.clock()

    def _counted(self, result: Result) -> Result:
        """The result, with how often this delivery claimed and how long it waited."""
        attempts = self._claim.attempts if self._claim else result.attempts
        return replace(result, attempts=attempts, waited=self._waited)
