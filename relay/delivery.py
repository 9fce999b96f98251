"""The protocol: puts an event into Svix once, records that, and only then acknowledges it.

A delivery is a loop of attempts. It ends when an attempt decides the event's outcome. An attempt is
one turn, one claim, one call to Svix and one settle:

    wait for a turn -> claim -> send (or ask for) the message -> settle: delivered or released

`what_next` is the table of what follows each answer of Svix. Before the call:

    the claim's result             next
    claimed                        call Svix
    claimed, but calls are paused  release the claim, and wait for a new turn
    delivered before               give the turn back; the outcome is `duplicate`
    in progress elsewhere          give the turn back; poll the record until it is delivered or free
    the ledger does not answer     the turn is used up; the pacer pauses all claims

After a crash, the event's redelivery goes on from where the function died:

    the function dies                            the redelivery
    while it waits                               claims immediately: no claim is held
    between claim and send                       waits until the lease ends (30 s), then sends
    between Svix's acceptance and settle         waits likewise, then sends with the same key
    the same, but redelivered 11 h later         asks Svix before it sends
    after settle, before the answer              is a duplicate

This module does no I/O itself: the ledger, the sender, the pacer and the clock are passed in. Times
are seconds of that clock.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
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

ASK_FIRST_SECONDS = 11 * 3600.0
"""If the first claim of an event is older than this, the delivery asks Svix for the message before
it sends: an earlier delivery may have sent it, and Svix forgets an idempotency key after 12 h. The
hour between the two covers waiting and clock differences."""

UNEXPLAINED_CONFLICTS = 2
UNEXPLAINED_AFTER_SECONDS = 5.0
"""After this many answers of 409 to sends, and this long after the first of them, the conflict
counts as unexplained. Two kinds of conflict pass by themselves. If two events of a new project race
to create its application, Svix answers one of them with 409. Svix also answers 409 while it holds
an idempotency lock, for 5 s. In an unexplained conflict, Svix answers a send with "this id is
taken", and a question with "there is no message with this id"."""

_FIRST_BACK_OFF, _LONGEST_BACK_OFF = 0.2, 20.0
"""Seconds before each retry with a back-off, doubled each time. The request waits instead of
nacking, because for each nack Pub/Sub slows down the whole subscription."""

_FIRST_POLL, _LONGEST_POLL = 0.2, 5.0
"""Seconds before each poll of a record that another delivery has claimed, doubled each time. The
same pauses come before each retry of recording an event as delivered."""

_HOPELESS_FAILURES = 3
"""If an event fails this often while Svix processes other projects' sends, the event or its project
is probably the cause."""


class Sender(Protocol):
    """Makes one call to Svix and classifies the answer. A failure of Svix is an answer too."""

    async def send(self, event: Event, idempotency_key: str) -> Answer:
        """Create the event's message."""

    async def find(self, event: Event) -> Answer:
        """Ask for the event's message."""


# -- what comes next


@dataclass(frozen=True, slots=True)
class Settle:
    """Svix has the message: record the event as delivered."""

    fanout_confirmed: bool
    """Whether we saw Svix accept the message. If so, Svix has queued it for the endpoints."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Release the claim, if one is held. The next attempt makes this call."""

    call: Call
    back_off: bool = False


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Release the claim and end: another attempt would not help."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class History:
    """What one delivery has learned from Svix's answers so far."""

    has_sent: bool = False
    saw_acceptance: bool = False
    """Whether Svix answered a send with 2xx and a body that broke off."""
    conflicts: int = 0
    """Answers of 409 to sends, since the last send without a usable answer."""
    first_conflict_at: float = 0.0
    """The time of the first of these."""

    def after(self, answer: Answer, now: float) -> "History":
        """The history with one more answer."""
        if answer.call is Call.ASK:
            return self
        conflicts, first_conflict_at = self.conflicts, self.first_conflict_at
        if answer.verdict is Verdict.UNAVAILABLE:
            # If no answer came, Svix may still be working on this send. Then it holds the lock of
            # the idempotency key, and a 409 to the next send is a new conflict.
            conflicts = 0
        elif answer.verdict is Verdict.CONFLICT:
            first_conflict_at = first_conflict_at if conflicts else now
            conflicts += 1
        return History(
            has_sent=True,
            saw_acceptance=self.saw_acceptance or answer.verdict is Verdict.BROKEN_OFF,
            conflicts=conflicts,
            first_conflict_at=first_conflict_at,
        )

    def has_unexplained_conflict(self, now: float) -> bool:
        """Whether Svix has answered 409 so often and for so long that the conflict will stay."""
        lasts = now - self.first_conflict_at >= UNEXPLAINED_AFTER_SECONDS
        return self.conflicts >= UNEXPLAINED_CONFLICTS and lasts


def what_next(  # noqa: PLR0911 - a return for each row
    answer: Answer, history: History, now: float, *, pushed: bool
) -> Settle | Retry | GiveUp:
    """What follows an answer of Svix. The first matching row applies.

    `history` includes this answer.
    """
    match answer.call, answer.verdict:
        case Call.SEND, Verdict.ACCEPTED:
            return Settle(fanout_confirmed=True)
        case Call.SEND, Verdict.BROKEN_OFF | Verdict.CONFLICT:
            # Svix may have the message. Another send would not show that: its answer may break
            # off too, or be a conflict again.
            return Retry(Call.ASK)
        case Call.SEND, Verdict.REJECTED:
            return GiveUp(Outcome.REJECTED)
        case Call.ASK, Verdict.ACCEPTED:
            # Svix may have stored the message and crashed before queueing it for the endpoints.
            # Only a 2xx to a send rules that out.
            return Settle(fanout_confirmed=history.saw_acceptance)
        case Call.ASK, Verdict.MISSING if history.has_unexplained_conflict(now):
            return GiveUp(Outcome.CONFLICT)
        case Call.ASK, Verdict.MISSING:
            # If we have not sent yet, no message is on its way, and no back-off is needed. If we
            # have, Svix may still be storing the message.
            return Retry(Call.SEND, back_off=history.has_sent)
        case _, Verdict.MISCONFIGURED if not pushed:
            return GiveUp(Outcome.MISCONFIGURED)  # a person posted it and reads the answer
        case call, Verdict.RATE_LIMITED:
            return Retry(call)  # the pacer delays the next turn
        case call, _:
            # UNAVAILABLE may pass. MISCONFIGURED needs a person, but a nack would slow down the
            # whole subscription. A send may be repeated, because Svix recognises its idempotency
            # key.
            return Retry(call, back_off=True)


# -- the loop


class Delivery:
    """Delivers events, one call of `deliver` each. Any number of calls may run concurrently.

    With `ask_first`, each delivery asks Svix for the message before it sends anything. `observe` is
    called with the name of each step of an event, for the debug log.
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
        """Whether the process is about to end. Then no new attempt begins."""
        self.attempting: set[object] = set()
        """The tasks of requests that hold a claim or are asking the ledger for one."""
        self._under_way: dict[str, asyncio.Event] = {}
        """By key: an `asyncio.Event`, set when the request that works on the key ends."""

    async def deliver(
        self, event: Event, arrived_at: float, deadline: float, owner: object = None
    ) -> Result:
        """Put one event into Svix by `deadline`, and return the result. Raises only if cancelled.

        `owner` is the request's task. It is in `attempting` while the request holds a claim or asks
        for one.
        """
        request = _Request(self, event, arrived_at, deadline, owner)
        result = await self._wait_for_others(request)
        if result is None:
            ended = self._under_way[request.key] = asyncio.Event()
            try:
                result = await request.run()
            finally:
                del self._under_way[request.key]
                ended.set()
        if result.outcome in PARKED_OUTCOMES:
            result = await self.parking.park(result, event.source, event.names, deadline)
        if event.source.pushed and not result.acknowledges and not request.nack_permitted:
            await self.pacer.nacks.space(deadline)
        return result

    async def _wait_for_others(self, request: "_Request") -> Result | None:
        """Wait until no other request of this process works on the event.

        Returns a result if the event was delivered meanwhile or the deadline has passed, else None.
        """
        while (other := self._under_way.get(request.key)) is not None:
            try:
                async with asyncio.timeout(max(0.0, request.deadline - self.waits.clock())):
                    await other.wait()
            except TimeoutError:
                return results.in_progress(InProgress(0.0, 0))
            if duplicate := await request.delivered_before():
                return duplicate
        return None


class _Request:
    """The loop of attempts for one event, and its state."""

    def __init__(
        self, delivery: Delivery, event: Event, arrived_at: float, deadline: float, owner: object
    ) -> None:
        self.key = key_of(event.project, event.id)
        self.deadline = deadline
        self.nack_permitted = False
        """Whether the pacer has already let this request nack."""
        self._delivery = delivery
        self._event = event
        self._owner = owner
        self._midpoint = (arrived_at + deadline) / 2
        self._waiter = Waiter(event.project, self.key, arrived_at, deadline - ATTEMPT_SECONDS)
        self._back_offs = delivery.waits.pauses(_FIRST_BACK_OFF, _LONGEST_BACK_OFF)
        self._history = History()
        self._next_call = Call.ASK if delivery.ask_first else Call.SEND
        self._claim: Claim | None = None
        """Our latest claim. If its release was lost, the record still holds this claim. Then our
        next claim may replace it immediately."""
        self._last_failure: Answer | LedgerUnavailable | None = None
        self._failures = 0
        self._first_failure_at = 0.0
        self._waited = 0.0

    async def run(self) -> Result:
        """Make attempts until the outcome is decided, or no more may be made."""
        result = await self._run()
        attempts = self._claim.attempts if self._claim else result.attempts
        return replace(result, attempts=attempts, waited=self._waited)

    async def _run(self) -> Result:
        delivery = self._delivery
        # A duplicate needs no turn, so it is answered even while Svix accepts nothing. If a turn is
        # free, the claim recognises the duplicate, and no extra read is needed.
        if delivery.pacer.must_wait(self._waiter) and (duplicate := await self.delivered_before()):
            return duplicate
        while not delivery.closing:
            step = await self._attempt()
            match step:
                case Result():
                    return step
                case InProgress():
                    if result := await self._wait_until_free(step):
                        return result
                case Retry(back_off=True):
                    await self._back_off()
                    if self.nack_permitted:
                        return results.unsent(self._last_failure)
        return results.unsent(None)

    async def delivered_before(self) -> Result | None:
        """`duplicate` if the ledger says that the event was delivered, else None.

        Also None if the ledger does not answer, because a later claim asks it again.
        """
        with contextlib.suppress(LedgerUnavailable):
            record = await self._delivery.ledger.record(self.key)
            denial = record.denial(self._event) if record else None
            if isinstance(denial, Duplicate):
                return results.duplicate(denial)
        return None

    async def _attempt(self) -> Result | Retry | InProgress:
        """Wait for a turn, claim, call Svix and settle."""
        delivery = self._delivery
        delivery.observe("waiting", self._event)
        queued_at = delivery.waits.clock()
        held: Claim | None = None
        try:
            async with delivery.pacer.turn(self._waiter) as turn:
                self._waited += delivery.waits.clock() - queued_at
                delivery.observe("turn", self._event)
                delivery.attempting.add(self._owner)
                claimed = await self._take_claim(turn)
                if not isinstance(claimed, Claim):
                    return claimed
                held = claimed
                answer = await self._call(turn)
            return await self._settle(held, answer)
        except NoTurn as no_turn:
            self._waited += delivery.waits.clock() - queued_at
            return results.unsent(self._last_failure, no_turn)
        except asyncio.CancelledError:
            if held is not None:
                # The process is about to end. Without the release, a redelivery would have to wait
                # until the lease ends.
                with contextlib.suppress(ClaimLost, LedgerUnavailable):
                    await delivery.ledger.release(held)
            raise
        finally:
            delivery.attempting.discard(self._owner)

    async def _take_claim(self, turn: Turn) -> Claim | Result | Retry | InProgress:
        try:
            claim = await self._delivery.ledger.claim(self._event, previous=self._claim)
        except LedgerUnavailable as failure:
            turn.ledger_failed()
            self._last_failure = failure
            if isinstance(failure, LedgerMisconfigured) and not self._event.source.pushed:
                return results.unsent(self._last_failure)
            return Retry(self._next_call)
        if isinstance(self._last_failure, LedgerUnavailable):
            self._last_failure = None  # the ledger answers again
        match claim:
            case Duplicate():
                return results.duplicate(claim)
            case Claim():
                self._delivery.observe("claimed", self._event)
                if self._claim is None and claim.age >= ASK_FIRST_SECONDS:
                    self._next_call = Call.ASK
                self._claim = claim
        return claim

    async def _call(self, turn: Turn) -> Answer | None:
        """Make one call to Svix. None if a pause has begun since the turn was given."""
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

    async def _settle(self, claim: Claim, answer: Answer | None) -> Result | Retry | InProgress:
        """Record the event as delivered, or release the claim, as `what_next` decides."""
        if answer is None:
            return await self._release(claim) or Retry(self._next_call)
        now = self._delivery.waits.clock()
        self._history = self._history.after(answer, now)
        step = what_next(answer, self._history, now, pushed=self._event.source.pushed)
        if isinstance(step, Settle):
            return await self._complete(claim, answer, step)
        self._remember(answer)
        if taken_over := await self._release(claim):
            return taken_over
        if isinstance(step, GiveUp):
            return results.not_accepted(step.outcome, answer)
        self._next_call = step.call
        return step

    async def _complete(self, claim: Claim, answer: Answer, step: Settle) -> Result | InProgress:
        """Record the event as delivered. Retries until the deadline.

        Each write is conditional on our claim, so it is safe even after the lease has ended.
        """
        delivery = self._delivery
        confirmed = step.fanout_confirmed
        for pause in delivery.waits.pauses(_FIRST_POLL, _LONGEST_POLL):
            try:
                await delivery.ledger.complete(claim, answer.message_id, fanout_confirmed=confirmed)
            except ClaimLost:
                return InProgress(0.0, claim.attempts)
            except LedgerUnavailable as failure:
                if delivery.closing or delivery.waits.clock() + pause >= self.deadline:
                    return results.unrecorded(answer, failure)
            else:
                delivery.observe("settled", self._event)
                return results.delivered(answer, fanout_confirmed=confirmed)
            await delivery.waits.sleep(pause)
        raise AssertionError  # there is always another pause

    async def _release(self, claim: Claim) -> InProgress | None:
        """Let the next delivery claim the event. `InProgress` if another has claimed it already."""
        try:
            self._claim = await self._delivery.ledger.release(claim)
        except ClaimLost:
            return InProgress(0.0, claim.attempts)
        except LedgerUnavailable:
            # If the record still has this claim, our next claim replaces it immediately. Other
            # deliveries can do so when the lease ends.
            return None
        self._delivery.observe("released", self._event)
        return None

    async def _wait_until_free(self, claimed: InProgress) -> Result | None:
        """Poll the record until the event is free (None) or delivered, or the budget ends."""
        delivery = self._delivery
        for pause in delivery.waits.pauses(_FIRST_POLL, _LONGEST_POLL):
            budget = self.deadline - delivery.waits.clock()
            if budget <= 0 or delivery.closing:
                break
            await delivery.waits.sleep(min(pause, claimed.lease_remaining, budget))
            try:
                record = await delivery.ledger.record(self.key)
            except LedgerUnavailable:
                claimed = InProgress(_LONGEST_POLL, claimed.attempts)
                continue
            match record.denial(self._event) if record else None:
                case None:
                    return None
                case Duplicate() as duplicate:
                    return results.duplicate(duplicate)
                case InProgress() as claimed:
                    pass
        return results.in_progress(claimed)

    async def _back_off(self) -> None:
        """Wait before the next attempt.

        If the event is hopeless and half its budget has passed, the wait ends as soon as the pacer
        permits a nack. The instance can then handle another request instead.
        """
        delivery, now = self._delivery, self._delivery.waits.clock()
        pause = min(next(self._back_offs), max(0.0, self._waiter.last_turn - now))
        is_hopeless = (
            self._event.source.pushed
            and self._failures >= _HOPELESS_FAILURES
            and delivery.pacer.serves_others_since(self._event.project, self._first_failure_at)
        )
        if is_hopeless and now >= self._midpoint:
            self.nack_permitted = await delivery.pacer.nacks.acquire(now + pause)
        else:
            await delivery.waits.sleep(pause)
        self._waited += delivery.waits.clock() - now

    def _remember(self, answer: Answer) -> None:
        self._last_failure = answer
        if answer.verdict is Verdict.UNAVAILABLE:
            self._failures += 1
            if self._failures == 1:
                self._first_failure_at = self._delivery.waits.clock()
