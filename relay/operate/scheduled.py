"""The scheduled reconciliation: Cloud Scheduler calls `POST /reconcile` every hour.

It compares the ledger with Svix for the two hours that ended an hour ago, and for all undelivered
events. Deliveries of the last hour are left out, because Svix may still make the first attempt for
their messages. The following runs cover them.

It changes no record. It makes Svix send messages that Svix never sent on. Two overlapping runs do
no harm: if an endpoint gets a message twice, the customer recognises the message's id.

Its calls to Svix wait for turns of the deliveries' pacer. Each call lets deliveries go first for up
to 5 s.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

from relay.config import Settings
from relay.ledger import Archive, LedgerMisconfigured
from relay.operate.reconciliation import Reconciliation, Repair
from relay.operate.report import Report
from relay.operate.svix import Pace, SvixUnavailable, SvixView
from relay.outcome import Answer
from relay.pacing import NoTurn, Pacer, Waiter

_WINDOW = timedelta(hours=2)
_ENDED_AGO = timedelta(hours=1)
_CALLS_A_SECOND = 2.0
_GIVES_WAY_SECONDS = 5.0
"""How long a call lets deliveries go first. After that the call waits in line like a delivery, so
that a long backlog does not stop the reconciliation."""
_POLL_SECONDS = 0.2  # between two checks whether deliveries wait

_LINE = "reconciliation:"
"""The reconciliation's own project at the pacer. No real project has a colon in its name."""


class _NoProgress:
    """Progress that nobody sees."""

    def begin(self, phase: str, total: int | None = None) -> None:
        pass

    def step(self) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class PacerTurns:
    """Gives the pacer's turns, after the deliveries, until `last_turn` on the pacer's clock."""

    def __init__(self, pacer: Pacer, last_turn: float) -> None:
        self._pacer = pacer
        self._pace = Pace(_CALLS_A_SECOND)
        self._last_turn = last_turn

    @contextlib.asynccontextmanager
    async def __call__(self) -> AsyncIterator[Callable[[Answer], None]]:
        """Wait for the next turn. Raises `SvixUnavailable` if none comes in time."""
        async with self._pace():
            arrived_at = time.monotonic()
            waiter = Waiter(_LINE, _LINE, arrived_at, self._last_turn)
            while self._pacer.must_wait(waiter):
                if time.monotonic() > arrived_at + _GIVES_WAY_SECONDS:
                    break
                await asyncio.sleep(_POLL_SECONDS)
            try:
                async with self._pacer.turn(waiter) as turn:
                    turn.begin(claimed=False)
                    yield turn.report
            except NoTurn as no_turn:
                raise SvixUnavailable(f"no turn came in time: {no_turn.detail}") from None


async def reconcile(settings: Settings, archive: Archive, pacer: Pacer, seconds: float) -> Report:
    """Compare the ledger with Svix, for at most `seconds`.

    If the ledger or Svix fails, the report says so, and has what was found until then.
    """
    now = datetime.now(UTC)
    until = now - _ENDED_AGO
    report = Report(since=until - _WINDOW, until=until)
    turns = PacerTurns(pacer, time.monotonic() + seconds)
    async with SvixView(
        settings.svix_token, settings.svix_server_url, turns, patience=seconds
    ) as svix:
        reconciliation = Reconciliation(
            archive,
            svix,
            report,
            _NoProgress(),
            repair=Repair.FANOUT,
            patience=seconds,
            look_again=False,
        )
        try:
            async with asyncio.timeout(seconds):
                await reconciliation.run()
        except TimeoutError:
            report.failure = f"the time limit of {seconds:.0f} s"
        except LedgerMisconfigured as fault:
            report.failure = f"the ledger: {fault}"
    return report
