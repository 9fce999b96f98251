"""What the ledgers' suites share: leases, and how a ledger is opened."""

import asyncio
from typing import Protocol

from relay.ledger import LEASE_SECONDS, Archive, key_of

MOMENT = 0.3
"""Seconds: a lease that a test can wait out."""

KEY = key_of("acme", "evt_1")


class Open(Protocol):
    """Opens a ledger whose claims have this lease; all of one test's share their records."""

    def __call__(self, lease: float = LEASE_SECONDS) -> Archive:
        """Open one more."""


async def lease_over(ledger: Archive, key: str = KEY) -> None:
    """Wait until the claim on the event has run out, by the ledger's own clock."""
    record = await ledger.record(key)
    assert record is not None
    await asyncio.sleep(max(0.0, record.lease_remaining + 0.01))
