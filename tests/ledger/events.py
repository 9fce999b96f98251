"""Made-up events and letters for all suites on the ledgers."""

import hashlib

from relay.envelope import Event, Source
from relay.ledger import Claim, DeadLetter, Ledger


def event(event_id: str = "evt_1", *, payload: str = "a") -> Event:
    """An event from a push."""
    text = payload.encode()
    digest = hashlib.sha256(text).hexdigest()
    source = Source(pushed=True, message_id="77")
    return Event(event_id, "user.created", "acme", text, (), digest, source)


async def claimed(ledger: Ledger, what: Event, previous: Claim | None = None) -> Claim:
    """Claim an event. The claim must succeed."""
    claim = await ledger.claim(what, previous=previous)
    assert isinstance(claim, Claim)
    return claim


async def delivered(ledger: Ledger, what: Event) -> None:
    """Record an event as delivered, as `msg_1`."""
    await ledger.complete(await claimed(ledger, what), "msg_1", fanout_confirmed=True)


def letter(message_id: str = "1", data: bytes = b'{"id": "evt_1"}') -> DeadLetter:
    """A push that Svix rejected."""
    return DeadLetter(
        id=hashlib.sha256(message_id.encode()).hexdigest(),
        data=data,
        reason="rejected",
        detail="Svix: 422 body.payload",
        message_id=message_id,
        subscription="projects/p/subscriptions/relay",
        attributes='{"a": "b"}',
        project="acme",
        event_id="evt_1",
        event_type="user.created",
        svix_status=422,
    )
