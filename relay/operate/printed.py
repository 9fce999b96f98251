"""What the commands print: text that fits 80 columns, and the same as JSON for scripts.

Neither has a payload, a token, or the query of an endpoint's URL.
"""

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from urllib.parse import urlsplit

from relay.config import Settings
from relay.ledger import DeadLetter
from relay.operate.checkup import Finding as Check
from relay.operate.reconciliation import Finding, Report
from relay.operate.whereabouts import Place, Whereabouts
from relay.outcome import Outcome, Result

_WIDTH = 80
_SHOWN = 10
_SENT = {Outcome.DELIVERED, Outcome.DUPLICATE}

_FINDINGS = {
    Finding.MISSING: "recorded as delivered, but not in Svix",
    Finding.ABANDONED: "its delivery died, and nothing took over",
    Finding.UNSENT: "released an hour ago or more, and not brought again",
    Finding.UNATTEMPTED: "in Svix, tried at no endpoint though there is one",
    Finding.PARKED: "parked: see `dead-letters list`",
    Finding.UNSETTLED: "in Svix, but not recorded as delivered",
    Finding.EXTRA: "in Svix, but not in the ledger",
}

_WORDS = {
    Place.NEVER_SEEN: "never seen here: look at the subscription's backlog and its dead letters",
    Place.CLAIMED: "being sent: a delivery holds the claim",
    Place.ABANDONED: "its delivery died: the next redelivery takes the claim over",
    Place.WAITING: "not sent yet: Pub/Sub will bring it again",
    Place.PARKED: "parked: it is not sent again by itself",
    Place.DISCARDED: "discarded by an operator",
    Place.UNSETTLED: "in Svix, but not recorded as delivered: the next redelivery records it",
    Place.IN_SVIX: "in Svix, and on its way to the endpoints there are",
    Place.DELIVERED: "delivered to the customer's endpoints",
    Place.FAILING: "in Svix, and failing at a customer's endpoint",
    Place.MISSING: "recorded as delivered, but Svix does not have it",
    Place.UNKNOWN: "unknown: Svix could not be asked",
}


def whereabouts(found: Whereabouts) -> str:
    """Where one event is."""
    lines = [f"{found.event_id} of {found.project}: {_WORDS[found.place]}", ""]
    if record := found.record:
        lines.append(f"  ledger    {record.state}, {record.attempts} claim(s)")
        lines.append(f"            first claimed {_time(record.first_claimed_at)}")
        if record.delivered_at:
            lines.append(f"            delivered     {_time(record.delivered_at)}")
        if found.place is Place.CLAIMED:
            frees_at = record.read_at + record.lease_left(found.lease)
            lines.append(f"            frees by      {_time(frees_at)}")
    else:
        lines.append("  ledger    no record")
    for letter_id, letter in found.letters:
        lines.append(f"  parked    {letter_id[:12]} {_time(letter.parked_at)}")
        lines.append(_cut(f"            {_reason(letter)}"))
    if found.svix_silent:
        lines.append(f"  Svix      {found.svix_silent}")
    elif found.message:
        lines.append(f"  Svix      {found.message.id}, accepted {_time(found.message.timestamp)}")
    else:
        lines.append("  Svix      no message")
    for there in found.destinations:
        lines.append(f"  endpoint  {_where(there.url)}")
        answer = "" if there.http is None else f", HTTP {there.http}"
        lines.append(
            f"            {there.status}{answer}, last attempt {_time(there.last_attempt)}"
        )
        if there.next_attempt:
            lines.append(f"            next retry {_time(there.next_attempt)}")
    return "\n".join(lines)


def whereabouts_json(found: Whereabouts) -> dict[str, object]:
    """The same for scripts."""
    record, message = found.record, found.message
    return {
        "event_id": found.event_id,
        "project": found.project,
        "place": found.place,
        "ledger": record
        and {
            "state": record.state,
            "attempts": record.attempts,
            "first_claimed_at": record.first_claimed_at.isoformat(),
            "delivered_at": _iso(record.delivered_at),
        },
        "dead_letters": [
            {"id": letter_id, "reason": letter.reason, "detail": letter.detail}
            for letter_id, letter in found.letters
        ],
        "svix": message and {"id": message.id, "accepted_at": message.timestamp.isoformat()},
        "svix_silent": found.svix_silent,
        "endpoints": [
            {
                "endpoint": _where(there.url),
                "status": there.status,
                "http": there.http,
                "attempts": there.attempts,
                "last_attempt": _iso(there.last_attempt),
                "next_attempt": _iso(there.next_attempt),
            }
            for there in found.destinations
        ],
    }


def letters(found: Sequence[tuple[str, DeadLetter]]) -> str:
    """A list of dead letters, two lines each."""
    lines = []
    for letter_id, letter in found:
        names = f"{letter.project or '-'}  {letter.event_type or '-'}"
        lines.append(_cut(f"{letter_id[:12]}  {_time(letter.parked_at)}  {names}"))
        lines.append(_cut(f"              {letter.event_id or '-'}  {_reason(letter)}"))
    return "\n".join([*lines, f"{len(found)} dead letter(s)"])


def letter(letter_id: str, found: DeadLetter) -> str:
    """One dead letter, without its payload."""
    rows = {
        "id": letter_id,
        "parked": _time(found.parked_at),
        "reason": _reason(found),
        "event": found.event_id,
        "type": found.event_type,
        "project": found.project,
        "message": found.message_id,
        "from": found.subscription,
        "bytes": f"{len(found.data):,}",
    }
    return "\n".join(f"{name:9}{value or '-'}" for name, value in rows.items())


def letter_json(letter_id: str, found: DeadLetter) -> dict[str, object]:
    """The same for scripts."""
    told = asdict(found)
    del told["data"], told["attributes"]
    return {"id": letter_id, **told, "parked_at": _iso(found.parked_at)}


def replayed(results: Mapping[str, Result], untouched: int) -> str:
    """What a replay came to: a count for each outcome, and what failed."""
    counts = Counter(result.outcome for result in results.values())
    lines = [f"{outcome:14}{count:6}" for outcome, count in sorted(counts.items())]
    if untouched:
        lines.append(f"{'not replayed':14}{untouched:6}")
    failed = [(i, r) for i, r in results.items() if r.outcome not in _SENT]
    lines += [_cut(f"  {i[:12]}  {r.outcome}: {r.detail}") for i, r in failed[:_SHOWN]]
    if len(failed) > _SHOWN:
        lines.append(f"  and {len(failed) - _SHOWN} more: `dead-letters list` shows them")
    return "\n".join(lines) or "Nothing to replay."


def replayed_json(results: Mapping[str, Result], untouched: int) -> dict[str, object]:
    """The same for scripts, each letter by its id."""
    told = {i: {"outcome": r.outcome, "detail": r.detail} for i, r in results.items()}
    return {"replayed": told, "not_replayed": untouched}


def report(found: Report) -> str:
    """What a reconciliation found."""
    head = (
        f"Since {_time(found.since)}: {found.records:,} records of the ledger, {found.messages:,} "
        f"messages\nin {found.applications:,} application(s) of Svix."
    )
    lines = [head, ""]
    for finding, meaning in _FINDINGS.items():
        lines.append(f"  {finding:12}{found.found[finding]:7,}  {meaning}")
        examples = found.examples.get(finding, [])
        lines += [_cut(f"{'':23}{event_id} of {project}") for project, event_id in examples]
    lines += ["", "Everything was sent." if found.is_complete else "Not everything was sent."]
    if found.mended:
        lines[-1] += f" {found.mended:,} record(s) mended."
    return "\n".join(lines)


def report_json(found: Report) -> dict[str, object]:
    """The same for scripts."""
    return {
        "since": _iso(found.since),
        "records": found.records,
        "messages": found.messages,
        "applications": found.applications,
        "complete": found.is_complete,
        "mended": found.mended,
        "found": {finding: found.found[finding] for finding in Finding},
        "examples": {
            finding: [{"project": project, "event_id": event_id} for project, event_id in examples]
            for finding, examples in found.examples.items()
        },
    }


def settings(read: Settings) -> dict[str, object]:
    """The settings, without the token."""
    firestore = f"Firestore, database {read.firestore_database}"
    return {
        "svix": read.svix_server_url or "by the token's region",
        "ledger": f"sqlite:{read.ledger_path}" if read.ledger_path else firestore,
        "project": read.google_cloud_project or "as Google's credentials say",
        "create_applications": read.create_applications,
        "request_budget": read.request_budget,
        "function_timeout": read.function_timeout,
        "lease": read.lease,
        "ack_deadline": read.ack_deadline,
    }


def checkup(read: Mapping[str, object], found: Sequence[Check]) -> str:
    """What a check found."""
    lines = [_cut(f"  {name:20}{value}") for name, value in read.items()]
    lines.append("")
    for each in found:
        lines.append(f"{'FAULT' if each.advice else 'ok':7}{each.subject:8}{each.said}")
        if each.advice:
            lines += textwrap.wrap(
                each.advice, 64, initial_indent=" " * 15, subsequent_indent=" " * 15
            )
    return "\n".join(lines)


def _reason(letter: DeadLetter) -> str:
    return f"{letter.reason}: {letter.detail}"


def _cut(line: str) -> str:
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…"


def _where(url: str) -> str:
    """An endpoint without its query, which may hold a customer's secret."""
    parts = urlsplit(url)
    return f"{parts.hostname}{parts.path}"[:66]


def _iso(when: datetime | None) -> str | None:
    return None if when is None else when.isoformat()


def _time(when: datetime | None) -> str:
    return "-" if when is None else f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
