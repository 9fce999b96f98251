"""Like `bench/crash.py`, but smaller: the worker is killed with many pushes in flight."""

from pathlib import Path

from bench.crash import crash
from local.push import Policy
from tests.function import ROOT

KILLABLE = ROOT / "tests" / "chaos" / "killable.py"
PUSHES = 80


async def test_a_crash_with_many_pushes_in_flight_loses_none_and_sends_none_twice(
    tmp_path: Path,
) -> None:
    """Each event is in Svix once and is acknowledged, although its claim's owner died."""
    (tmp_path / "kill-point").touch()
    seam = {"KILL_POINT": str(tmp_path / "kill-point"), "LEASE_SECONDS": "3"}
    ledger = {"LEDGER": f"sqlite:{tmp_path}/ledger.db", "PYTHONPATH": str(ROOT)}
    policy = Policy(initial_window=3000, max_pause=0.0, min_retry_delay=0.5)
    figures = await crash("a crash", ledger | seam, PUSHES, policy, source=KILLABLE)
    assert figures.claimed > 1
    assert (figures.delivered, figures.twice) == (PUSHES, 0)
