"""Helpers of the ledgers' suites: leases, and how a ledger is opened."""

import asyncio
from typing import Protocol

from relay.ledger import LEASE_SECONDS, Archive, key_of

MOMENT = 0.3
"""Seconds of a lease that is so short that a test can wait until it ends."""

KEY = key_of("acme", "evt_1")


class Open(Protocol):
    """Opens a ledger whose claims have this lease. All ledgers of one test share their records."""

    def __call__(self, lease: float = LEASE_SECONDS) -> Archive:
        """Open another ledger."""


async def lease_over(ledger: Archive, key: str = KEY) -> None:
    """Wait until the lease of the claim has ended, by the ledger's clock."""
    record = await ledger.record(key)
    assert record is not None
    await asyncio.sleep(max(0.0, record.lease_remaining + 0.01))
