"""One JSON line per delivery, as Cloud Logging reads it.

The fields are what `deploy/`'s metrics, dashboards and alerts are made of. No payload, no token,
no personal datum: an event is named by its id, its type and its project alone.

Source: https://cloud.google.com/logging/docs/structured-logging
"""

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from relay.config import LOG_LEVELS
from relay.envelope import Event, Source
from relay.ledger import key_of
from relay.outcome import Outcome, Result

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_CLOUD_TRACE = re.compile(r"([0-9a-f]{32})(?:/.*)?")


@dataclass(frozen=True, slots=True)
class DeliveryLog:
    """Writes the lines of at least `level` to standard output.

    `cloud_project` is the Google Cloud project that traces are filed under; without it they are
    left out.
    """

    level: str
    cloud_project: str | None

    def write(
        self,
        result: Result,
        source: Source,
        event: Event | None,
        duration: float,
        headers: Mapping[str, str],
    ) -> None:
        """Log one delivery; `duration` is in seconds, from the request's arrival."""
        if LOG_LEVELS.index(result.severity) < LOG_LEVELS.index(self.level):
            return
        line = {
            "severity": result.severity,
            "message": " ".join((result.outcome, *((event.type, event.id) if event else ()))),
            "outcome": result.outcome,
            "status": result.status,
            "detail": result.detail,
            "event_id": event.id if event else None,
            "event_type": event.type if event else None,
            "project": event.project if event else None,
            "idempotency_key": key_of(event.project, event.id) if event else None,
            "message_id": source.message_id,
            "subscription": source.subscription,
            "delivery_attempt": source.delivery_attempt,
            "attempts": result.attempts,
            "svix_message_id": result.svix_message_id,
            "svix_status": result.svix_status,
            "dead_letter": result.dead_letter,
            "lag_ms": _lag_ms(result, source),
            "duration_ms": round(duration * 1000),
            "waited_ms": round(result.waited * 1000),
            "logging.googleapis.com/trace": self._trace(headers),
        }
        present = {name: value for name, value in line.items() if value is not None}
        sys.stdout.write(json.dumps(present) + "\n")
        sys.stdout.flush()

    def _trace(self, headers: Mapping[str, str]) -> str | None:
        trace = _TRACEPARENT.fullmatch(headers.get("traceparent", "")) or _CLOUD_TRACE.fullmatch(
            headers.get("x-cloud-trace-context", "")
        )
        if trace is None or self.cloud_project is None:
            return None
        return f"projects/{self.cloud_project}/traces/{trace[1]}"


def _lag_ms(result: Result, source: Source) -> int | None:
    """From publishing to Svix's acceptance, for what was delivered now."""
    if result.outcome is not Outcome.DELIVERED or source.published_at is None:
        return None
    lag = datetime.now(UTC) - source.published_at
    return max(0, round(lag.total_seconds() * 1000))
