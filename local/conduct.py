"""How the simulator behaves, and what was called: values, without the server."""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal


@dataclass(frozen=True, slots=True)
class Call:
    """One call to the API: when (monotonic seconds), what, and how it was answered."""

    at: float
    method: str
    path: str
    status: int
    """0 where no answer was given."""


@dataclass(slots=True)
class Fault:
    """Something that goes wrong, for the next `times` calls that match (None: until cleared).

    `kind`: `status` answers `status` with `body` and `headers`; `hang` never answers; `drop`
    resets the connection; `drip` stores the message and answers 202 byte by byte; `lose_answer`
    stores it and resets; `store_then_status` stores it and answers `status`; `store_unqueued` does
    so too, but the message is never sent on to an endpoint; `race` answers 409 as if another call
    were creating the application.
    """

    kind: str
    status: int = 500
    body: str = "empty"
    """A key of `wire.BODIES`, or `json` for an error as the API words it."""
    headers: dict[str, str] = field(default_factory=dict)
    times: int | None = None
    method: str = "POST"
    """`*`: any."""
    app: str | None = None
    """Only calls for this application; None: any."""


@dataclass(slots=True)
class Conduct:
    """How the simulator behaves; may be changed while it runs."""

    kind: Literal["hosted", "open_source"] = "hosted"
    """Which Svix it is. They differ in a few things, which `wire.RULES` lists."""
    latency: float = 0.0
    """Seconds before each answer."""
    rate: float | None = None
    """Calls a second, by token bucket; None: no limit."""
    burst: float = 50.0
    retry_after: str | None = None
    """The header of a 429: `seconds`, `date`, any text as it is, or None for no header."""
    clock_offset: timedelta = timedelta(0)
    """How far its clock is ahead, so that keys can expire."""
    retry_schedule: tuple[float, ...] = (5, 300, 1800, 7200, 18000, 36000, 36000)
    """Seconds between the attempts at an endpoint that fails; by default Svix's own."""
