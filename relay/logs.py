"""Writes one JSON line per delivery and per reconciliation, in Cloud Logging's format.

The metrics, dashboards and alerts in `deploy/` use the fields of these lines. At DEBUG the relay
also logs each delivery's steps and the pacer's state. No line has a payload, a token or personal
data. An event is identified by its id, its type and its project.

Source: https://cloud.google.com/logging/docs/structured-logging
"""

import json
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from relay.config import LOG_LEVELS
from relay.envelope import Event, Names, Source
from relay.ledger import key_of
from relay.outcome import Outcome, Result
from relay.pacing import PacerState

# https://www.w3.org/TR/trace-context/#traceparent-header and
# https://cloud.google.com/trace/docs/trace-context#legacy-http-header
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_CLOUD_TRACE = re.compile(r"([0-9a-f]{32})(?:/.*)?")


@dataclass(frozen=True, slots=True)
class Log:
    """Writes one line for each delivery whose severity is at least `level`, to standard output.

    `cloud_project` is the Google Cloud project of the traces. Without it, lines have no trace.
    """

    level: str
    cloud_project: str | None

    @property
    def is_debug(self) -> bool:
        """Whether steps and the pacer's state are logged."""
        return self.level == "DEBUG"

    def write(
        self,
        result: Result,
        source: Source,
        names: Names,
        duration: float,
        headers: Mapping[str, str],
    ) -> None:
        """Log one delivery. `duration` is in seconds, from the request's arrival."""
        if LOG_LEVELS.index(result.severity) < LOG_LEVELS.index(self.level):
            return
        is_named = names.project is not None and names.id is not None
        line = {
            "severity": result.severity,
            "message": " ".join(filter(None, (result.outcome, names.type, names.id))),
            "outcome": result.outcome,
            "status": result.status,
            "remark": result.remark,
            "code": result.code,
            "detail": result.detail,
            "event_id": names.id,
            "event_type": names.type,
            "project": names.project,
            "idempotency_key": key_of(names.project or "", names.id or "") if is_named else None,
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
            **self._trace(source, headers),
        }
        _write_line(line)

    def reconciliation(self, counts: Mapping[str, object], severity: str) -> None:
        """Log what a reconciliation found, at any log level, because an alert needs the line."""
        line = {"severity": severity, "message": "reconciliation", "reconciliation": counts}
        _write_line(line)

    def step(self, step: str, event: Event) -> None:
        """Log one step of a delivery, at DEBUG."""
        if self.is_debug:
            line = {"severity": "DEBUG", "message": "step", "step": step, "at": time.time()}
            _write_line(line | {"event_id": event.id, "project": event.project})

    def pacer(self, state: PacerState) -> None:
        """Log the pacer's state, at DEBUG."""
        if self.is_debug:
            line = {"severity": "DEBUG", "message": "pacer", "at": time.time()}
            _write_line(line | asdict(state))

    def _trace(self, source: Source, headers: Mapping[str, str]) -> dict[str, str]:
        """The fields for the publisher's trace, or for the request's if the message has none.

        Cloud Logging shows a line beside the trace that these fields name:
        https://cloud.google.com/trace/docs/trace-log-integration
        """
        if self.cloud_project is None:
            return {}
        prefix = f"projects/{self.cloud_project}/traces/"
        for parent in (source.traceparent, headers.get("traceparent")):
            if trace := _TRACEPARENT.fullmatch(parent or ""):
                return {
                    "logging.googleapis.com/trace": prefix + trace[1],
                    "logging.googleapis.com/spanId": trace[2],
                }
        if trace := _CLOUD_TRACE.fullmatch(headers.get("x-cloud-trace-context", "")):
            return {"logging.googleapis.com/trace": prefix + trace[1]}
        return {}


def _write_line(line: Mapping[str, object]) -> None:
    present = {name: value for name, value in line.items() if value is not None}
    sys.stdout.write(json.dumps(present) + "\n")
    sys.stdout.flush()


def _lag_ms(result: Result, source: Source) -> int | None:
    """Milliseconds from publishing until now, if the outcome is `delivered`."""
    if result.outcome is not Outcome.DELIVERED or source.published_at is None:
        return None
    lag = datetime.now(UTC) - source.published_at
    return max(0, round(lag.total_seconds() * 1000))
