"""Retries calls to a failing ledger, mostly those of the operator's commands."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from relay.ledger import LedgerMisconfigured, LedgerUnavailable
from relay.waits import REAL_TIME

_T = TypeVar("_T")

PATIENCE_SECONDS = 120.0
"""Long enough for a failing instance or zone to be replaced. A short outage should not end a
reconciliation of a large ledger, which would have to start again from the beginning."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0  # seconds before each retry, doubled each time


async def patiently(ask: Callable[[], Awaitable[_T]]) -> _T:
    """Call `ask` until it returns. After two minutes, raise its last `LedgerUnavailable`.

    Raises `LedgerMisconfigured` immediately.
    """
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    pauses = REAL_TIME.pauses(_FIRST_PAUSE, _LONGEST_PAUSE)
    while True:
        pause = next(pauses)
        try:
            return await ask()
        except LedgerMisconfigured:
            raise
        except LedgerUnavailable:
            if time.monotonic() + pause > give_up_at:
                raise
        await asyncio.sleep(pause)
