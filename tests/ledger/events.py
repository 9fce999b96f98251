"""Made-up events, for every suite on the ledgers."""

import hashlib

from relay.envelope import Event, Source
from relay.ledger import Claim, Ledger


def event(event_id: str = "evt_1", *, payload: str = "a") -> Event:
    """An event that came by a push."""
    digest = hashlib.sha256(payload.encode()).hexdigest()
    source = Source(pushed=True, message_id="77")
    return Event(event_id, "user.created", "acme", {"data": payload}, digest, source)


async def claimed(ledger: Ledger, what: Event) -> Claim:
    """A claim that must succeed."""
    claim = await ledger.claim(what)
    assert isinstance(claim, Claim)
    return claim
