"""The words for how a delivery ended: a Result of an answer, a failure, or a record."""

from relay.ledger import Duplicate, InProgress, LedgerMisconfigured, LedgerUnavailable
from relay.outcome import Answer, Outcome, Remark, Result, Verdict
from relay.pacing import NoTurn

# What a delivery ends as when no turn is left; every other answer of Svix is `unavailable`.
_UNSENT = {
    Verdict.RATE_LIMITED: Outcome.RATE_LIMITED,
    Verdict.MISCONFIGURED: Outcome.MISCONFIGURED,
}


def delivered(answer: Answer, *, fanout_confirmed: bool) -> Result:
    """Svix has the message, and the ledger says so."""
    return Result(
        outcome=Outcome.DELIVERED,
        remark=None if fanout_confirmed else Remark.FANOUT_UNCONFIRMED,
        svix_status=answer.status,
        svix_message_id=answer.message_id,
    )


def unrecorded(answer: Answer, failure: LedgerUnavailable) -> Result:
    """Svix has the message, and the ledger can't be told: it is not acknowledged."""
    return Result(
        outcome=Outcome.LEDGER_UNAVAILABLE,
        detail=f"Svix has it, but the ledger could not record that: {failure}",
        svix_status=answer.status,
        svix_message_id=answer.message_id,
    )


def duplicate(record: Duplicate) -> Result:
    """The event was delivered before."""
    return Result(
        outcome=Outcome.DUPLICATE,
        remark=Remark.PAYLOAD_CHANGED if record.payload_changed else None,
        svix_message_id=record.svix_message_id,
        attempts=record.attempts,
    )


def in_progress(claimed: InProgress) -> Result:
    """Another delivery is at it, and the budget is over."""
    seconds = claimed.lease_remaining.total_seconds()
    detail = f"another delivery holds the claim, for {seconds:.0f} s at most"
    return Result(outcome=Outcome.IN_PROGRESS, detail=detail)


def refused(outcome: Outcome, answer: Answer, retry_after: float | None = None) -> Result:
    """Svix has not taken the event; `retry_after` is in seconds."""
    return Result(
        outcome=outcome,
        detail=f"Svix: {answer}",
        code=answer.code,
        retry_after=retry_after,
        svix_status=answer.status,
        svix_code=answer.code,
    )


def unsent(last: Answer | LedgerUnavailable | None, no_turn: NoTurn | None = None) -> Result:
    """No turn is left, or another attempt would be in vain: `last` is what went wrong last."""
    retry_after = no_turn.retry_after if no_turn else None
    match last:
        case Answer():
            return refused(_UNSENT.get(last.verdict, Outcome.UNAVAILABLE), last, retry_after)
        case LedgerMisconfigured():
            outcome, detail = Outcome.MISCONFIGURED, f"the ledger: {last}"
        case LedgerUnavailable():
            outcome, detail = Outcome.LEDGER_UNAVAILABLE, f"the ledger: {last}"
        case None if no_turn is not None:
            outcome, detail = no_turn.outcome, no_turn.detail
        case _:
            outcome, detail = Outcome.UNAVAILABLE, "shutting down"
    return Result(outcome=outcome, detail=detail, retry_after=retry_after)
