"""The fate of an event: each row of the table, and their order."""

import pytest

from local.page.verdict import Evidence, Fate, fate


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [
        (Evidence(2, 1, is_pending=False, is_kept=False), Fate.TWICE),
        (Evidence(2, None, is_pending=True, is_kept=True), Fate.TWICE),
        (Evidence(1, 2, is_pending=False, is_kept=False), Fate.TWICE),
        (Evidence(1, 1, is_pending=False, is_kept=False), Fate.ONCE),
        (Evidence(1, None, is_pending=False, is_kept=False), Fate.ONCE),
        # Delivered already, and a duplicate is still to be pushed.
        (Evidence(1, 1, is_pending=True, is_kept=False), Fate.ONCE),
        # Svix has it, its customer does not.
        (Evidence(1, 0, is_pending=False, is_kept=False), Fate.ON_ITS_WAY),
        (Evidence(0, 0, is_pending=True, is_kept=False), Fate.ON_ITS_WAY),
        # Parked once, and published again.
        (Evidence(0, 0, is_pending=True, is_kept=True), Fate.ON_ITS_WAY),
        (Evidence(0, 0, is_pending=False, is_kept=True), Fate.PARKED),
        (Evidence(0, 0, is_pending=False, is_kept=False), Fate.LOST),
        (Evidence(0, None, is_pending=False, is_kept=False), Fate.LOST),
    ],
)
def test_fate(evidence: Evidence, expected: Fate) -> None:
    assert fate(evidence) is expected
