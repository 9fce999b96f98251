"""The output of `inspect` and `reconcile`: as text that fits 80 columns, and as JSON.

The output never has a payload, a token, or more of an endpoint's URL than its host.
"""

import math
import textwrap
from datetime import UTC, datetime, timedelta

from relay.operate.inspection import Inspection
from relay.operate.report import Report
from relay.operate.whereabouts import (
    EndpointStanding,
    Fanout,
    Place,
    Remedy,
    Standing,
)

WIDTH = 80

_PLACES = {
    Place.NEVER_SEEN: "never seen here",
    Place.BEING_SENT: "being sent: a delivery holds the claim",
    Place.ABANDONED: "not sent yet: the delivery that held the claim died",
    Place.WAITING: "not sent yet: it waits for its redelivery",
    Place.OVERDUE: "not sent, and no redelivery has come",
    Place.PARKED: "parked: it can't be sent as it is",
    Place.DISCARDED: "discarded by an operator",
    Place.MISSING: "recorded as delivered, but Svix does not have it",
    Place.UNSETTLED: "in Svix, but not recorded as delivered",
    Place.UNRECORDED: "in Svix, without a record here",
    Place.IN_SVIX: "in Svix",
    Place.UNKNOWN: "unknown: Svix could not be asked",
}

_FANOUTS = {
    Fanout.NO_ENDPOINT: "none of the customer's endpoints takes it",
    Fanout.NEVER_SENT_ON: "Svix has never sent it on",
    Fanout.FAILING: "failing at a customer's endpoint",
    Fanout.PENDING: "on its way to the customer's endpoints",
    Fanout.DELIVERED: "delivered to the customer's endpoints",
}

_NEXT = {
    Place.BEING_SENT: "the claim ends by {by}",
    Place.ABANDONED: "Pub/Sub redelivers it by {by}; then it is sent",
    Place.WAITING: "Pub/Sub redelivers it by {by}; then it is sent",
    Place.UNSETTLED: "Pub/Sub redelivers it by {by}; then it is recorded as delivered",
}

_NOTHING_NEXT = {
    Place.NEVER_SEEN: (
        "Nothing is known about it. Look at the subscription's backlog and its dead-letter topic "
        "(`./deploy.sh --status`), and ask the publisher."
    ),
    Place.UNRECORDED: (
        "Nothing more happens here. The record has expired (after 45 days), or another program "
        "sent the event."
    ),
    Place.DISCARDED: "Nothing more happens. `dead-letters show` says why.",
    Place.UNKNOWN: "Ask again when Svix answers.",
}

_STANDINGS = {
    Standing.DELIVERED: "delivered",
    Standing.UNDER_WAY: "an attempt is under way",
    Standing.RETRYING: "failed so far",
    Standing.FAILED: "failed; Svix does not try again by itself",
    Standing.CANCELED: "canceled by the endpoint's transformation",
    Standing.QUEUED: "not tried yet",
    Standing.NEVER_SENT: "never tried, though it takes such events",
    Standing.DISABLED: "not tried: it is disabled",
    Standing.OTHER_TYPES: "not tried: it wants other event types",
    Standing.OTHER_CHANNELS: "not tried: it wants other channels",
    Standing.CREATED_LATER: "not tried: it was created later",
}


# -- inspect


def inspection(found: Inspection) -> str:
    """Where one event is, as text. The first line is the answer, the rest is the evidence."""
    where, evidence = found.where, found.evidence
    title = f"{found.event_id} of {found.project}: {_headline(found)}"
    lines = [*textwrap.wrap(title, WIDTH, break_on_hyphens=False), ""]
    if where.since:
        lines.append(f"  since     {when(where.since)} ({_ago(evidence.now - where.since)})")
    if record := evidence.record:
        lines.append(f"  record    {record.state}; claimed {_times(record.attempts)}")
        lines.append(f"            first claimed {when(record.first_claimed_at)}")
        if record.delivered_at:
            lines.append(f"            delivered     {when(record.delivered_at)}")
    else:
        lines.append("  record    none")
    for letter in evidence.letters:
        state = "parked" if letter.discarded is None else "discarded"
        at = letter.discarded_at or letter.parked_at
        lines.append(f"  {state:10}{letter.id[:12]} {when(at)}")
        reason = letter.discarded or f"{letter.reason}: {letter.detail}"
        lines.append(cut(f"            {reason}"))
    lines += _svix(found)
    for each in where.standings:
        lines += _endpoint(each)
    lines += ["", *_what_next(found)]
    return "\n".join(lines).rstrip()


def _headline(found: Inspection) -> str:
    where, place = found.where, _PLACES[found.where.place]
    if where.place is Place.UNKNOWN and found.evidence.record is not None:
        return "recorded as delivered; Svix could not be asked"
    if where.fanout is None:
        return place
    fanout = _FANOUTS[where.fanout]
    if where.place is Place.IN_SVIX and where.fanout is Fanout.DELIVERED:
        return fanout
    return f"{place}; {fanout}"


def _svix(found: Inspection) -> list[str]:
    if found.svix_failure:
        return _paragraph("  Svix      ", found.svix_failure)
    message = found.evidence.svix and found.evidence.svix.message
    if not message:
        return ["  Svix      no message"]
    lines = [f"  Svix      {message.id}, accepted {when(message.accepted_at)}"]
    if not found.where.standings:
        lines.append("  endpoint  none")
    return lines


def _endpoint(found: EndpointStanding) -> list[str]:
    endpoint, last = found.endpoint, found.last
    name = f"{endpoint.id}, deleted" if endpoint.deleted else endpoint.id
    lines = [cut(f"  endpoint  {endpoint.host} ({name})")]
    text = _STANDINGS[found.standing]
    if last:
        answer = f"HTTP {last.http}" if last.http else "no answer"
        text += f": {answer}, attempt {found.attempts} at {when(last.at)}"
    lines += _paragraph("            ", text)
    if found.standing is Standing.RETRYING and endpoint.next_attempt:
        lines.append(f"            Svix tries again {when(endpoint.next_attempt)}")
    return lines


def _what_next(found: Inspection) -> list[str]:
    where = found.where
    lines = []
    if where.next_by and where.place in _NEXT:
        lines += _paragraph("  next      ", _NEXT[where.place].format(by=when(where.next_by)))
    elif where.place in _NOTHING_NEXT:
        lines += _paragraph("  next      ", _NOTHING_NEXT[where.place])
    elif where.remedies:
        lines.append("  next      nothing happens by itself")
    for n, remedy in enumerate(where.remedies):
        lines += _paragraph("  to do     " if not n else "  or        ", _advice(remedy, found))
    return lines


def _advice(remedy: Remedy, found: Inspection) -> str:
    evidence = found.evidence
    match remedy:
        case Remedy.REPLAY:
            letter = next(each for each in evidence.letters if each.discarded is None)
            return f"correct the cause, then `python -m relay dead-letters replay {letter.id[:12]}`"
        case Remedy.FIX:
            return f"`{_fix(found)}`"
        case Remedy.REDRIVE:
            return (
                "after 100 deliveries Pub/Sub moves an event to the dead-letter topic: "
                "`./deploy.sh … --redrive` pushes the events in it to the function again"
            )
        case Remedy.SEEK:
            claimed_at = evidence.record.first_claimed_at if evidence.record else None
            return (
                "set the push subscription back with `gcloud pubsub subscriptions seek`, to a time "
                f"before this event was published (it was first claimed at {when(claimed_at)}). "
                "Seek acknowledges all events that were published before the chosen time. So if an "
                "older event still waits, choose a time before that one: otherwise it is lost"
            )
        case Remedy.PUBLISH:
            return "publish the event again, with the same id"


def _fix(found: Inspection) -> str:
    """The command that repairs this event. Its `--since` is before the claim and the message."""
    evidence = found.evidence
    known = [evidence.now]
    if evidence.record:
        known.append(evidence.record.first_claimed_at)
    if evidence.svix and evidence.svix.message:
        known.append(evidence.svix.message.accepted_at)
    hours = math.ceil((evidence.now - min(known)) / timedelta(hours=1)) + 1
    command = f"python -m relay reconcile --since {hours}h --project {found.project} --fix"
    confirmed = evidence.record is not None and evidence.record.fanout_confirmed is not False
    is_looked_at = found.where.place is Place.UNSETTLED or not confirmed
    if found.where.fanout is Fanout.NEVER_SENT_ON and not is_looked_at:
        command += " --attempts"
    return command


def inspection_json(found: Inspection) -> dict[str, object]:
    """Where one event is, as JSON for scripts."""
    where, evidence = found.where, found.evidence
    record = evidence.record
    message = evidence.svix and evidence.svix.message
    return {
        "event_id": found.event_id,
        "project": found.project,
        "place": where.place,
        "fanout": where.fanout,
        "since": iso(where.since),
        "next_by": iso(where.next_by),
        "remedies": list(where.remedies),
        "record": record
        and {
            "state": record.state,
            "attempts": record.attempts,
            "first_claimed_at": iso(record.first_claimed_at),
            "touched_at": iso(record.touched_at),
            "delivered_at": iso(record.delivered_at),
            "fanout_confirmed": record.fanout_confirmed,
        },
        "dead_letters": [
            {
                "id": letter.id,
                "reason": letter.reason,
                "detail": letter.detail,
                "parked_at": iso(letter.parked_at),
                "discarded": letter.discarded,
            }
            for letter in evidence.letters
        ],
        "svix": message and {"id": message.id, "accepted_at": iso(message.accepted_at)},
        "svix_failure": found.svix_failure,
        "endpoints": [_endpoint_json(each) for each in where.standings],
    }


def _endpoint_json(found: EndpointStanding) -> dict[str, object]:
    return {
        "id": found.endpoint.id,
        "host": found.endpoint.host,
        "standing": found.standing,
        "attempts": found.attempts,
        "http": found.last.http if found.last else None,
        "last_attempt": iso(found.last.at if found.last else None),
        "next_attempt": iso(found.endpoint.next_attempt),
    }


# -- reconcile

_ROWS = (
    # what is counted, its meaning, what repairs it
    (Place.MISSING, "recorded as delivered, not in Svix", "reconcile --fix, then seek or publish"),
    (Place.OVERDUE, "not sent, and no redelivery has come", "what inspect says, for each event"),
    (Place.PARKED, "can't be sent as it is", "dead-letters list, then replay or discard"),
    (Fanout.NEVER_SENT_ON, "in Svix, which never sent it on", "reconcile --fix"),
    (Place.ABANDONED, "its delivery died; its redelivery sends it", None),
    (Place.WAITING, "waits for its redelivery", None),
    (Place.BEING_SENT, "being sent at this moment", None),
    (Place.UNSETTLED, "in Svix, not recorded as delivered", "reconcile --fix"),
    (Place.UNRECORDED, "in Svix, without a record here", None),
    (Place.DISCARDED, "discarded by an operator", None),
)


def report(found: Report) -> str:
    """What a reconciliation found, as text, with what repairs it."""
    until = when(found.until) if found.until else "now"
    head = (
        f"{when(found.since)} to {until}: {found.events:,} event(s) of {found.projects:,} "
        f"project(s), {found.messages:,} Svix message(s)."
    )
    lines = [*textwrap.wrap(head, WIDTH), ""]
    lines.append(f"  {'delivered':14}{found.delivered:9,}  in Svix, and recorded")
    for kind, meaning, remedy in _ROWS:
        count = found.never_sent_on if kind is Fanout.NEVER_SENT_ON else found.places[kind]  # type: ignore[index] # the one Fanout is handled before
        if not count:
            continue
        lines.append(f"  {kind:14}{count:9,}  {meaning}")
        if kind is Place.PARKED:
            reasons = (f"{count:,} {reason}" for reason, count in found.reasons.most_common())
            lines.append(f"{'':27}{', '.join(reasons)}")
        if remedy:
            lines.append(f"{'':27}to do: {remedy}")
        examples = found.examples.get(kind, [])
        lines += [cut(f"{'':27}{event_id} of {project}") for project, event_id in examples]
    if found.unchecked:
        lines.append(f"  {'not checked':14}{found.unchecked:9,}  it is not known where they are")
    return "\n".join([*lines, "", *_conclusion(found)])


def _conclusion(found: Report) -> list[str]:
    lines = []
    repaired = {
        "recorded as delivered": found.settled,
        "released": found.released,
        "sent on by Svix": found.resent,
    }
    done = [f"{count:,} {what}" for what, count in repaired.items() if count]
    if done:
        lines.append(f"Repaired: {', '.join(done)}.")
    if found.failure:
        lines += textwrap.wrap(f"Not finished: {found.failure}", WIDTH)
    if found.unfinished:
        names = ", ".join(sorted(found.unfinished)[:10])
        more = f" and {len(found.unfinished) - 10:,} more" if len(found.unfinished) > 10 else ""  # noqa: PLR2004 - the 10 of the line above
        lines += textwrap.wrap(f"Comparison not finished: {names}{more}.", WIDTH)
    if found.needs_operator:
        lines.append(
            f"Not everything was sent: {found.needs_operator:,} event(s) need an operator."
        )
    if found.late:
        lines.append(
            f"{found.late:,} event(s) wait for their redelivery: run this again in an hour."
        )
    if found.everything_sent:
        lines.append("Everything was sent.")
    return lines


def report_json(found: Report) -> dict[str, object]:
    """What a reconciliation found, as JSON for scripts."""
    return {
        "since": iso(found.since),
        "until": iso(found.until),
        "everything_sent": found.everything_sent,
        "events": found.events,
        "messages": found.messages,
        "projects": found.projects,
        "delivered": found.delivered,
        "waiting": found.waiting,
        "needs_operator": found.needs_operator,
        "found": {
            str(kind): found.never_sent_on if isinstance(kind, Fanout) else found.places[kind]
            for kind, _, _ in _ROWS
        },
        "parked_reasons": dict(found.reasons),
        "examples": {
            str(kind): [
                {"project": project, "event_id": event_id} for project, event_id in examples
            ]
            for kind, examples in found.examples.items()
        },
        "repaired": {
            "settled": found.settled,
            "released": found.released,
            "resent": found.resent,
        },
        "complete": found.complete,
        "failure": found.failure,
        "unfinished_projects": sorted(found.unfinished),
        "unchecked": found.unchecked,
    }


# -- words


def when(at: datetime | None) -> str:
    """A time for people."""
    return "-" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def iso(at: datetime | None) -> str | None:
    """A time for scripts."""
    return None if at is None else at.isoformat()


def cut(line: str) -> str:
    """A line, cut off if it is too long for the output."""
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…"


def _paragraph(indent: str, text: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=" " * len(indent),
        break_on_hyphens=False,
    )


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count:,} times")


def _ago(age: timedelta) -> str:
    """An age in words, in the largest unit that fits into it at least twice."""
    seconds = max(0, round(age.total_seconds()))
    for unit, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds // unit} {name}"
    return f"{seconds} s"
