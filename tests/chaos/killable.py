"""The function's source, with places to die at: for the chaos suite, never deployed.

`main.py` as it is, its ledger, sender and protocol with one line more each. The process kills
itself (SIGKILL, as a crash would) when it comes to the point that the file `KILL_POINT` holds, and
empties the file, so that the worker started next lives. Leases last `LEASE_SECONDS`.

    after_claim    the claim is recorded, nothing is sent
    after_send     Svix has the message, the ledger does not know
    before_answer  all is recorded, whoever posted is not told
"""

import os
import signal
from pathlib import Path
from typing import Any

from relay import worker
from relay.delivery import Delivery
from relay.envelope import Event
from relay.ledger import Claim, Duplicate, InProgress
from relay.outcome import Answer, Result
from relay.sender import SvixSender

POINT = Path(os.environ["KILL_POINT"])
LEASE = float(os.environ["LEASE_SECONDS"])


def die_at(point: str) -> None:
    """End the process here, if here is where it should end."""
    if POINT.read_text() == point:
        POINT.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)


class DyingSender(SvixSender):
    """May die when Svix has answered."""

    async def send(self, event: Event, idempotency_key: str) -> Answer:
        answer = await super().send(event, idempotency_key)
        die_at("after_send")
        return answer


class DyingDelivery(Delivery):
    """May die when everything is done."""

    __slots__ = ()

    async def deliver(self, *arguments: Any, **more: Any) -> Result:
        result = await Delivery.deliver(self, *arguments, **more)
        die_at("before_answer")
        return result


class DyingLedger:
    """May die when the claim is won."""

    def __init__(self, ledger: Any) -> None:
        self._ledger = ledger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    async def claim(self, event: Event, **more: Any) -> Claim | Duplicate | InProgress:
        claim: Claim | Duplicate | InProgress = await self._ledger.claim(event, **more)
        if isinstance(claim, Claim):
            die_at("after_claim")
        return claim


def dying(opener: Any) -> Any:
    """A `ledger_opener` whose ledgers may die, and lease for less long."""
    return lambda settings, **more: lambda: DyingLedger(opener(settings, **more)(lease=LEASE))


_parts: Any = worker
_parts.SvixSender = DyingSender
_parts.Delivery = DyingDelivery
_parts.ledger_opener = dying(worker.ledger_opener)

from main import notifications  # noqa: E402 - it takes the parts as they are then

__all__ = ["notifications"]
