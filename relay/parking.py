"""Parking: a push that can never succeed is stored as a dead letter and acknowledged.

Otherwise Pub/Sub would redeliver it for days. An operator replays or discards the dead letter.
"""

from dataclasses import dataclass, replace

from relay.envelope import Names, Source
from relay.ledger import DeadLetter, Ledger, LedgerUnavailable
from relay.outcome import Outcome, Result
from relay.waits import Waits

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0  # seconds before each retry, doubled each time


@dataclass(frozen=True, slots=True)
class Parking:
    """Stores dead letters in the ledger."""

    ledger: Ledger
    waits: Waits

    async def park(self, result: Result, source: Source, names: Names, deadline: float) -> Result:
        """Store the push that ended as `result`. Retries stop at `deadline`.

        An event posted by hand is not parked, because the person who posted it reads the answer. If
        the letter can't be stored, the result is `ledger_unavailable`, and the push is nacked.
        """
        if not source.pushed:
            return result
        letter = DeadLetter.of(result, source, names)
        pauses = self.waits.pauses(_FIRST_PAUSE, _LONGEST_PAUSE)
        while True:
            try:
                await self.ledger.park(letter)
            except LedgerUnavailable as failure:
                remaining = deadline - self.waits.clock()
                if remaining <= 0:
                    detail = f"{result.detail}; could not be parked: {failure}"
                    return replace(result, outcome=Outcome.LEDGER_UNAVAILABLE, detail=detail)
            else:
                return replace(result, dead_letter=letter.id)
            await self.waits.sleep(min(next(pauses), remaining))
