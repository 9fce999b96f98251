"""Parking: a push that can never succeed is stored as a dead letter, and acknowledged.

Pub/Sub would bring it again for days otherwise. A person replays or discards it.
"""

from dataclasses import dataclass, replace

from relay.envelope import Names, Source
from relay.ledger import DeadLetter, Ledger, LedgerUnavailable
from relay.outcome import Outcome, Result
from relay.waits import Waits

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0  # seconds, while the ledger does not answer


@dataclass(frozen=True, slots=True)
class Parking:
    """Stores what is parked in the ledger."""

    ledger: Ledger
    waits: Waits

    async def park(self, result: Result, source: Source, names: Names, deadline: float) -> Result:
        """Store the push that ended as `result`; a try begins no later than `deadline`.

        What was posted by hand is not parked: whoever posted it reads the answer. What can't be
        stored is not acknowledged: then the result is `ledger_unavailable`.
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
