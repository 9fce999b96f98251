"""Reads what an instance of the relay logs: the steps of each event, and the pacer's state.

The relay writes these lines at LOG_LEVEL=DEBUG; `relay/logs.py` has their format. All other lines
are ignored: other levels, other programs, half a line.
"""

import json
from dataclasses import dataclass
from typing import Any

Key = tuple[str, str]
"""An event: its project and its id."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of an event. `name` is the relay's name for it; `at` is in seconds since 1970."""

    key: Key
    name: str
    at: float


@dataclass(frozen=True, slots=True)
class Pacer:
    """The state of an instance's pacer. `rate` is in calls a second; None: no limit is known."""

    waiting: int
    in_flight: int
    rate: float | None
    is_paused: bool


def read(line: bytes) -> Step | Pacer | None:
    """Parse a line; None if it is neither a step nor a pacer's state."""
    if not line.startswith(b'{"severity": "DEBUG"'):
        return None
    try:
        fields: dict[str, Any] = json.loads(line)
        match fields["message"]:
            case "step":
                return Step((fields["project"], fields["event_id"]), fields["step"], fields["at"])
            case "pacer":
                rate, paused = fields.get("rate"), bool(fields.get("paused"))
                return Pacer(fields["waiting"], fields["in_flight"], rate, paused)
    except (ValueError, KeyError):
        pass  # a process that is killed may leave half a line
    return None
