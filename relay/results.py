"""Builds the `Result` of a delivery from Svix's answer, a failure or the event's record."""

from relay.ledger import Duplicate, InProgress, LedgerMisconfigured, LedgerUnavailable
from relay.outcome import Answer, Outcome, Remark, Result, Verdict
from relay.pacing import NoTurn

# The outcome if the request gives up, by the verdict of Svix's last answer. Others: UNAVAILABLE.
_UNSENT = {
    Verdict.RATE_LIMITED: Outcome.RATE_LIMITED,
    Verdict.MISCONFIGURED: Outcome.MISCONFIGURED,
}


def delivered(answer: Answer, *, fanout_confirmed: bool) -> Result:
    """Svix has the message, and the ledger has recorded that."""
    return Result(
        outcome=Outcome.DELIVERED,
        remark=None if fanout_confirmed else Remark.FANOUT_UNCONFIRMED,
        svix_status=answer.status,
        svix_message_id=answer.message_id,
    )


def unrecorded(answer: Answer, failure: LedgerUnavailable) -> Result:
    """Svix has the message, and the ledger failed to record that. The push is nacked."""
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
    """Another request works on the event, and the budget or the process ends."""
    detail = "another delivery works on the event"
    if claimed.lease_remaining:
        detail += f", for {claimed.lease_remaining:.0f} s at most"
    return Result(outcome=Outcome.IN_PROGRESS, detail=detail)


def not_accepted(outcome: Outcome, answer: Answer, retry_after: float | None = None) -> Result:
    """The delivery ends, and Svix's last answer was not a success. `retry_after` is in seconds."""
    return Result(
        outcome=outcome,
        detail=f"Svix: {answer}",
        code=answer.code,
        retry_after=retry_after,
        svix_status=answer.status,
        svix_code=answer.code,
    )


def unsent(failure: Answer | LedgerUnavailable | None, no_turn: NoTurn | None = None) -> Result:
    """No attempt succeeded, and no more is made. `failure` is that of the last attempt."""
    retry_after = no_turn.retry_after if no_turn else None
    match failure:
        case Answer(verdict=verdict):
            return not_accepted(_UNSENT.get(verdict, Outcome.UNAVAILABLE), failure, retry_after)
        case LedgerMisconfigured():
            outcome, detail = Outcome.MISCONFIGURED, f"the ledger: {failure}"
        case LedgerUnavailable():
            outcome, detail = Outcome.LEDGER_UNAVAILABLE, f"the ledger: {failure}"
        case None if no_turn is not None:
            outcome, detail = no_turn.outcome, no_turn.detail
        case _:
            outcome, detail = Outcome.UNAVAILABLE, "shutting down"
    return Result(outcome=outcome, detail=detail, retry_after=retry_after)
