"""What a reconciliation has looked at, and what it has found so far."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime

from relay.operate.whereabouts import Fanout, Place

_EXAMPLES = 5


@dataclass(slots=True)
class Report:
    """What was looked at and what was found, so far."""

    since: datetime
    until: datetime | None = None
    """None: until now."""
    events: int = 0
    """Records in the time asked, and undelivered ones of any age."""
    messages: int = 0
    places: Counter[Place] = field(default_factory=Counter)
    never_sent_on: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Why dead letters were parked."""
    examples: dict[Place | Fanout, list[tuple[str, str]]] = field(default_factory=dict)
    """(project, event id), a few of each."""
    settled: int = 0
    released: int = 0
    resent: int = 0
    projects: int = 0
    unfinished: list[str] = field(default_factory=list)
    """Projects that were not compared with Svix to the end."""
    unchecked: int = 0
    """Delivered events of those projects, which may or may not be in Svix."""
    failure: str | None = "not finished"
    """Why the run ended early; None where it did not."""

    @property
    def delivered(self) -> int:
        """Events that are recorded as delivered and that Svix has."""
        return self.places[Place.IN_SVIX]

    @property
    def waiting(self) -> int:
        """Events that are sent soon without anybody's help."""
        return sum(self.places[place] for place in Place if place.waits)

    @property
    def late(self) -> int:
        """Events that were to be sent before, and wait for their redelivery."""
        return self.waiting - self.places[Place.BEING_SENT]

    @property
    def without(self) -> int:
        """Events that a customer goes without until somebody acts."""
        stuck = sum(self.places[place] for place in Place if place.stuck)
        return stuck + self.never_sent_on - self.resent

    @property
    def complete(self) -> bool:
        """Whether everything was compared that was asked for."""
        return self.failure is None

    @property
    def everything_sent(self) -> bool:
        """Whether every event is known to be in Svix, or to be on its way at this moment."""
        return self.complete and not self.without and not self.late

    @property
    def severity(self) -> str:
        """The severity to log with."""
        return "ERROR" if self.without else "INFO"

    def as_log(self) -> dict[str, object]:
        """The counts that the dashboards and alerts are made of."""
        return {
            "since": self.since.isoformat(),
            "until": self.until.isoformat() if self.until else None,
            "events": self.events,
            "delivered": self.delivered,
            "waiting": self.waiting,
            "parked": self.places[Place.PARKED],
            "never_sent_on": self.never_sent_on,
            "resent": self.resent,
            "missing": self.places[Place.MISSING],
            "overdue": self.places[Place.OVERDUE],
            "without": self.without,
            "unchecked": self.unchecked,
            "complete": self.complete,
            "failure": self.failure,
        }

    def add(self, kind: Place | Fanout, project: str, event_id: str) -> None:
        """Count one event."""
        if isinstance(kind, Place):
            self.places[kind] += 1
        else:
            self.never_sent_on += 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < _EXAMPLES:
            examples.append((project, event_id))
