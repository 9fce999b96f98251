"""The relay's debug log, as the page reads it."""

import json
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest

from local.page.steps import Pacer, Step, read
from relay.logs import Log
from relay.pacing import PacerState


def test_a_step_as_the_relay_writes_it(capsys: pytest.CaptureFixture[str]) -> None:
    event: Any = SimpleNamespace(id="evt_1", project="acme")
    Log("DEBUG", None).step("claimed", event)
    line = capsys.readouterr().out.strip().encode()
    assert read(line) == Step(("acme", "evt_1"), "claimed", json.loads(line)["at"])


@pytest.mark.parametrize("rate", [None, 12.5])
def test_the_pacer_as_the_relay_writes_it(
    rate: float | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a limit there is no rate in the line."""
    state = PacerState(3, 2, rate, paused=True, taken=9, refused=1, failed=0)
    assert asdict(state)["rate"] == rate
    Log("DEBUG", None).pacer(state)
    line = capsys.readouterr().out.strip().encode()
    assert read(line) == Pacer(waiting=3, in_flight=2, rate=rate, is_paused=True)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"Traceback (most recent call last):",
        b'{"severity": "INFO", "message": "delivered", "outcome": "delivered"}',
        b'{"severity": "DEBUG", "message": "something else"}',
        b'{"severity": "DEBUG", "message": "step", "step": "claim',
        b'{"severity": "DEBUG", "message": "step", "step": "claimed", "at": 1.0}',
    ],
)
def test_all_other_lines_are_ignored(line: bytes) -> None:
    """They are lines of other programs or levels, or half a line of a killed process."""
    assert read(line) is None
