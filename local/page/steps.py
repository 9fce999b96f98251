"""Reads what an instance of the relay logs: the steps of each event, and the pacer's state.

The relay writes these lines at LOG_LEVEL=DEBUG, `relay/logs.py` says how. What is not one of them
(another level, another program, half a line) is no business of the page.
"""

import json
from dataclasses import dataclass
from typing import Any

Key = tuple[str, str]
"""An event: its project and its id."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step on an event's way: `name` is the relay's word, `at` seconds since 1970."""

    key: Key
    name: str
    at: float


@dataclass(frozen=True, slots=True)
class Pacer:
    """How an instance's pacer stands. `rate` is in calls a second; None: no limit is known."""

    waiting: int
    in_flight: int
    rate: float | None
    is_paused: bool


def read(line: bytes) -> Step | Pacer | None:
    """What the line says; None where it is neither."""
    if not line.startswith(b'{"severity": "DEBUG"'):
        return None
    try:
        said: dict[str, Any] = json.loads(line)
        match said["message"]:
            case "step":
                return Step((said["project"], said["event_id"]), said["step"], said["at"])
            case "pacer":
                rate, paused = said.get("rate"), bool(said.get("paused"))
                return Pacer(said["waiting"], said["in_flight"], rate, paused)
    except (ValueError, KeyError):
        pass  # a process that is killed may leave half a line
    return None
