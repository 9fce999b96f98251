"""The function with points at which it kills itself. For the chaos suite; it is never deployed.

It runs `main.py` with a changed ledger, sender and protocol. `KILL_POINT` is the path of a file.
When the process reaches the point that is written in it, it empties the file and kills itself
(SIGKILL), like a crash. The next worker finds the file empty and survives. Leases last
`LEASE_SECONDS`.

    after_claim    the claim is recorded, and nothing is sent
    after_send     Svix has the message, and the ledger does not know
    before_answer  everything is recorded, and the request is not answered
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
    """Kill the process if this is its kill point."""
    if POINT.read_text() == point:
        POINT.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)


class DyingSender(SvixSender):
    """May die after Svix has answered."""

    async def send(self, event: Event, idempotency_key: str) -> Answer:
        answer = await super().send(event, idempotency_key)
        die_at("after_send")
        return answer


class DyingDelivery(Delivery):
    """May die when everything is recorded."""

    __slots__ = ()

    async def deliver(self, *arguments: Any, **more: Any) -> Result:
        result = await Delivery.deliver(self, *arguments, **more)
        die_at("before_answer")
        return result


class DyingLedger:
    """May die after a claim has succeeded."""

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
    """A `ledger_opener` whose ledgers may die and have short leases."""
    return lambda settings, **more: lambda: DyingLedger(opener(settings, **more)(lease=LEASE))


_parts: Any = worker
_parts.SvixSender = DyingSender
_parts.Delivery = DyingDelivery
_parts.ledger_opener = dying(worker.ledger_opener)

from main import notifications  # noqa: E402 - after the parts are replaced

__all__ = ["notifications"]
