"""What the ledgers' suites share: leases, and how a ledger is opened."""

from collections.abc import Callable
from datetime import timedelta

from relay.ledger import Archive

HOUR = timedelta(hours=1)
MOMENT = timedelta(seconds=0.3)

Open = Callable[[timedelta], Archive]
"""A ledger with this lease; all of one test's share their records."""
