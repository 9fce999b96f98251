"""The pauses between attempts."""

import itertools

import pytest

from relay.waits import Waits


def test_pauses_double_up_to_the_longest() -> None:
    """Jitter makes each pause up to a tenth longer, so that requests do not retry together."""
    waits = Waits(uniform=lambda _low, high: high)
    pauses = list(itertools.islice(waits.pauses(1.0, 5.0), 4))
    assert pauses == pytest.approx([1.1, 2.2, 4.4, 5.5])


def test_pauses_never_overflow() -> None:
    assert max(itertools.islice(Waits().pauses(0.2, 20.0), 5_000)) <= 22.0
