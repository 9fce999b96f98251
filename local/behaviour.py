"""Data classes of the Svix simulator: its behaviour, its faults, and the calls it has answered."""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal


@dataclass(frozen=True, slots=True)
class Call:
    """One call to the API. `at` is in seconds of the monotonic clock."""

    at: float
    method: str
    path: str
    status: int
    """0 if no answer was given."""


@dataclass(slots=True)
class Fault:
    """A fault. It applies to the next `times` matching calls; None: until it is cleared.

    `kind` says what happens to a call:

        status             answers `status` with `body` and `headers`
        hang               never answers
        drop               resets the connection
        drip               stores the message, then answers 202 with a body sent byte by byte
        lose_answer        stores the message, then resets the connection
        store_then_status  stores the message, then answers `status`
        store_unqueued     the same, but the message is never sent to an endpoint
        race               answers 409, as if another call were creating the application
    """

    kind: str
    status: int = 500
    body: str = "empty"
    """A key of `wire.BODIES`, or `json` for an error in the API's format."""
    headers: dict[str, str] = field(default_factory=dict)
    times: int | None = None
    method: str = "POST"
    """`*` stands for any method."""
    app: str | None = None
    """Only calls for this application match; None: calls for any application."""


@dataclass(slots=True)
class Behaviour:
    """How the simulator behaves; may be changed while it runs."""

    kind: Literal["hosted", "open_source"] = "hosted"
    """Which Svix it imitates. `wire.RULES` lists their differences."""
    latency: float = 0.0
    """Seconds before each answer."""
    rate: float | None = None
    """Calls a second, by token bucket; None: no limit."""
    burst: float = 50.0
    retry_after: str | None = None
    """A 429's Retry-After: `seconds`, `date`, any other text verbatim, or None for no header."""
    clock_offset: timedelta = timedelta(0)
    """How far its clock is ahead. Tests use it to let keys expire."""
    retry_schedule: tuple[float, ...] = (5, 300, 1800, 7200, 18000, 36000, 36000)
    """Seconds between the attempts at an endpoint that fails; by default Svix's own."""
