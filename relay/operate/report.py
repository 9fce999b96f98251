"""What a reconciliation has looked at and found so far."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime

from relay.operate.whereabouts import Fanout, Place

_EXAMPLES = 5


@dataclass(slots=True)
class Report:
    """What a reconciliation has looked at and found so far."""

    since: datetime
    until: datetime | None = None
    """None: until now."""
    events: int = 0
    """The number of records compared: all undelivered ones, and those written in the period."""
    messages: int = 0
    """The number of messages in Svix's listings that were accepted in the period."""
    places: Counter[Place] = field(default_factory=Counter)
    """The number of events at each place."""
    never_sent_on: int = 0
    """The number of messages that Svix never sent to some endpoint that wants them."""
    reasons: Counter[str] = field(default_factory=Counter)
    """The number of parked dead letters by their reason."""
    examples: dict[Place | Fanout, list[tuple[str, str]]] = field(default_factory=dict)
    """The project and the event id of a few events of each kind."""
    settled: int = 0
    """The number of events that the reconciliation marked as delivered."""
    released: int = 0
    """The number of events that it released, so that their next delivery sends them."""
    resent: int = 0
    """The number of messages that it made Svix send on."""
    projects: int = 0
    """The number of projects that the compared events belong to."""
    unfinished: list[str] = field(default_factory=list)
    """The projects whose messages were not all compared."""
    unchecked: int = 0
    """The number of events whose place is not known, usually because the run did not finish."""
    failure: str | None = "not finished"
    """Why the run did not finish; None once it has finished."""

    @property
    def delivered(self) -> int:
        """The number of events that are recorded as delivered and are in Svix."""
        return self.places[Place.IN_SVIX]

    @property
    def waiting(self) -> int:
        """The number of events that are not sent yet, and will be sent without anyone's help."""
        return sum(self.places[place] for place in Place if place.waits)

    @property
    def late(self) -> int:
        """The number of events that wait for their redelivery."""
        return self.waiting - self.places[Place.BEING_SENT]

    @property
    def needs_operator(self) -> int:
        """The number of events that customers do not get until a person acts."""
        stuck = sum(self.places[place] for place in Place if place.stuck)
        return stuck + self.never_sent_on - self.resent

    @property
    def complete(self) -> bool:
        """Whether the run has finished."""
        return self.failure is None

    @property
    def everything_sent(self) -> bool:
        """Whether the run has finished, and no event waits for its redelivery or for a person."""
        return self.complete and not self.needs_operator and not self.late

    @property
    def severity(self) -> str:
        """The severity to log with."""
        return "ERROR" if self.needs_operator else "INFO"

    def as_log(self) -> dict[str, object]:
        """The counts for the log line, which the dashboards and alerts use."""
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
            "needs_operator": self.needs_operator,
            "unchecked": self.unchecked,
            "complete": self.complete,
            "failure": self.failure,
        }

    def add(self, kind: Place | Fanout, project: str, event_id: str) -> None:
        """Count one event, and keep it as an example if there are few."""
        if isinstance(kind, Place):
            self.places[kind] += 1
        else:
            self.never_sent_on += 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < _EXAMPLES:
            examples.append((project, event_id))
