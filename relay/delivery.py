"""The protocol: claim, send, settle, so that an event is in Svix once and acknowledged only then.

Pure: ledger, sender, pacer and clock are handed in, and nothing is awaited but them. Deadlines
are seconds of that clock; the adapters keep them. What to do with the result (answer, park, log)
is not decided here.

    when the function dies...                what heals it
    before the claim                         Pub/Sub redelivers
    between claim and send                   the lease runs out, a redelivery takes the claim over
    between Svix's acceptance and settle     the resend carries the same idempotency key
    the same, but hours later                a takeover of an old claim asks Svix first
    after settle, before the answer          the redelivery finds a duplicate
"""

import asyncio
import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from http import HTTPStatus
from typing import Protocol

from relay.config import SETTLE_SECONDS, SVIX_CALL_SECONDS
from relay.envelope import Event, Source
from relay.ledger import (
    Claim,
    ClaimLost,
    DeadLetter,
    Duplicate,
    InProgress,
    Ledger,
    LedgerUnavailable,
)
from relay.outcome import Answer, Outcome, Result, Verdict
from relay.pacing import Pacer, TurnedAway

LAST_TURN_SECONDS = SVIX_CALL_SECONDS + SETTLE_SECONDS
"""What a turn must leave of the budget: time for the call, and to record what it said."""

ASK_FIRST_AGE = timedelta(hours=11)
"""Svix forgets an idempotency key after 12 h; the hour between is for waiting and for clocks."""

_FIRST_BACK_OFF = 0.2  # seconds; doubles with each try, the pacer adds jitter
_LONGEST_BACK_OFF = 5.0  # seconds; a minute's budget then still has room for ten tries


class Sender(Protocol):
    """One call to Svix, its answer classified; neither raises for anything Svix may do."""

    async def send(self, event: Event, idempotency_key: str) -> Answer:
        """Create the message."""

    async def find(self, event: Event) -> Answer:
        """Ask for the message: ACCEPTED where Svix has it, NOT_FOUND where it hasn't."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """Delivers events, one call of `deliver` each; any number may run at once."""

    ledger: Ledger
    sender: Sender
    pacer: Pacer
    clock: Callable[[], float]
    create_applications: bool = True
    """Whether an unknown application is about to exist, or a reason to park the event."""
    ask_first: bool = False
    """Whether Svix is asked before anything is sent, however young the event."""

    async def deliver(self, event: Event, deadline: float) -> Result:
        """Bring one event into Svix by `deadline`, or say why not. Raises only if cancelled."""
        last_turn = deadline - LAST_TURN_SECONDS
        if turned_away := self.pacer.refusal(last_turn):
            return _turned_away(turned_away)
        try:
            claim = await self.ledger.claim(event)
        except LedgerUnavailable as failure:
            return _ledger_unavailable(failure)
        if isinstance(claim, Duplicate):
            return _duplicate(claim)
        if isinstance(claim, InProgress):
            detail = (
                f"another delivery holds the claim for {claim.lease_left.total_seconds():.0f} s"
            )
            return Result(outcome=Outcome.IN_PROGRESS, detail=detail, attempts=claim.attempts)
        result = await _Attempt(self, event, claim, last_turn).run()
        if result.outcome is Outcome.REJECTED:
            return await self.park(result, event.source, event)
        return result

    async def park(self, result: Result, source: Source, event: Event | None = None) -> Result:
        """Put a push that can never succeed aside, so that it is not redelivered for days.

        What was posted by hand is not parked: whoever posted it reads the answer.
        """
        if not source.pushed:
            return result
        letter = DeadLetter(
            data=source.data,
            reason=result.outcome,
            detail=result.detail or "",
            message_id=source.message_id,
            subscription=source.subscription,
            attributes=json.dumps(source.attributes),
            project=event.project if event else None,
            event_id=event.id if event else None,
            event_type=event.type if event else None,
            svix_status=result.svix_status,
            svix_code=result.svix_code,
        )
        try:
            await self.ledger.park(letter)
        except LedgerUnavailable as failure:
            detail = f"{result.detail}; could not be parked: {failure}"
            return replace(result, detail=detail, status_override=500)
        return replace(result, dead_letter=letter.id)


class _Attempt:
    """What is done under one claim; every way out settles or releases it."""

    def __init__(self, delivery: Delivery, event: Event, claim: Claim, last_turn: float) -> None:
        self._delivery = delivery
        self._event = event
        self._claim = claim
        self._last_turn = last_turn
        self._waited = 0.0
        self._send_failed = False
        self._fanout_unconfirmed = False

    async def run(self) -> Result:
        try:
            answer = await self._bring_into_svix()
            if answer.verdict is Verdict.ACCEPTED:
                return await self._complete(answer)
        except TurnedAway as turned_away:
            await self._release()
            return self._told(_turned_away(turned_away))
        except asyncio.CancelledError:
            # Shutting down: the redelivery should not have to wait for the lease to run out.
            await self._release()
            raise
        await self._release()
        return self._told(_refused(answer, create_applications=self._delivery.create_applications))

    async def _bring_into_svix(self) -> Answer:
        """Send, and try again, until Svix has the event, never will, or no turn is left.

        After a conflict, and for a record so old that Svix may have forgotten its idempotency
        key, Svix is asked for the message, and nothing is sent until it has said that it has none.
        """
        asking = self._delivery.ask_first or self._claim.age > ASK_FIRST_AGE
        back_off = _FIRST_BACK_OFF
        delay = 0.0
        sent = False
        answer: Answer | None = None
        while True:
            try:
                await self._turn(delay)
            except TurnedAway as turned_away:
                if answer is None or turned_away.outcome is Outcome.UNAVAILABLE:
                    raise
                return replace(answer, retry_after=turned_away.retry_after)
            answer = await self._call(asking=asking)
            sent |= not asking
            match answer.verdict:
                case Verdict.ACCEPTED:
                    self._fanout_unconfirmed = asking and self._send_failed
                    return answer
                case Verdict.REJECTED | Verdict.MISCONFIGURED:
                    return answer
                case Verdict.RATE_LIMITED | Verdict.CONFLICT:
                    asking |= answer.verdict is Verdict.CONFLICT
                    delay = 0.0  # the pacer knows when
                    continue
                case Verdict.NOT_FOUND if asking:
                    # Not sent yet, then: should no turn come for that, it is not Svix's refusal.
                    asking, answer = False, replace(answer, verdict=Verdict.UNAVAILABLE)
                    if not sent:
                        continue  # nothing has failed, so there is nothing to back off from
                case Verdict.NOT_FOUND if not self._delivery.create_applications:
                    return answer
            delay, back_off = back_off, min(2 * back_off, _LONGEST_BACK_OFF)

    async def _turn(self, delay: float) -> None:
        asked_at = self._delivery.clock()
        try:
            await self._delivery.pacer.turn(self._last_turn, delay)
        finally:
            self._waited += self._delivery.clock() - asked_at

    async def _call(self, *, asking: bool) -> Answer:
        """One call to Svix; the turn it had is always reported back."""
        answer = Answer(Verdict.UNAVAILABLE)
        try:
            if asking:
                answer = await self._delivery.sender.find(self._event)
            else:
                answer = await self._delivery.sender.send(self._event, self._claim.key)
                self._send_failed |= (answer.status or 0) >= HTTPStatus.INTERNAL_SERVER_ERROR
        finally:
            self._delivery.pacer.report(answer)
        return answer

    async def _complete(self, answer: Answer) -> Result:
        """Record what Svix has accepted: only what is recorded is acknowledged."""
        told = self._told(
            Result(
                outcome=Outcome.DELIVERED,
                svix_status=answer.status,
                svix_message_id=answer.message_id,
            )
        )
        try:
            await self._delivery.ledger.complete(self._claim, answer.message_id)
        except ClaimLost:
            detail = "Svix has it, but the lease ran out and another delivery holds the claim"
            return replace(told, outcome=Outcome.IN_PROGRESS, detail=detail)
        except LedgerUnavailable as failure:
            return replace(
                told,
                outcome=Outcome.UNAVAILABLE,
                detail=f"Svix has it, but the ledger could not record that: {failure}",
                severity_override="ERROR",
            )
        if self._fanout_unconfirmed:
            # An open-source Svix can store a message and fail to queue it: a person should look.
            return replace(told, detail="fanout_unconfirmed", severity_override="WARNING")
        return told

    async def _release(self) -> None:
        # Where this fails the lease runs out, or a successor has the claim: both are taken care of.
        with contextlib.suppress(ClaimLost, LedgerUnavailable):
            await self._delivery.ledger.release(self._claim)

    def _told(self, result: Result) -> Result:
        return replace(result, attempts=self._claim.attempts, waited=self._waited)


def _turned_away(turned_away: TurnedAway) -> Result:
    return Result(
        outcome=turned_away.outcome,
        detail=turned_away.detail,
        retry_after=turned_away.retry_after,
    )


def _duplicate(record: Duplicate) -> Result:
    return Result(
        outcome=Outcome.DUPLICATE,
        detail="payload_changed" if record.payload_changed else None,
        severity_override="WARNING" if record.payload_changed else None,
        svix_message_id=record.svix_message_id,
        attempts=record.attempts,
    )


def _ledger_unavailable(failure: LedgerUnavailable) -> Result:
    return Result(
        outcome=Outcome.UNAVAILABLE, detail=f"the ledger: {failure}", severity_override="ERROR"
    )


def _refused(answer: Answer, *, create_applications: bool) -> Result:
    """The result where Svix has not taken the event."""
    said = filter(None, (answer.code, *answer.locs))
    told = Result(
        outcome=Outcome.UNAVAILABLE,
        detail=" ".join(("Svix:", str(answer.status or "no answer"), *said)),
        retry_after=answer.retry_after,
        svix_status=answer.status,
        svix_code=answer.code,
    )
    match answer.verdict:
        case Verdict.RATE_LIMITED:
            return replace(told, outcome=Outcome.RATE_LIMITED)
        case Verdict.MISCONFIGURED:
            return replace(told, outcome=Outcome.MISCONFIGURED)
        case Verdict.REJECTED:
            return replace(told, outcome=Outcome.REJECTED)
        case Verdict.NOT_FOUND if not create_applications:
            return replace(told, outcome=Outcome.REJECTED, detail="unknown_application")
    return told
