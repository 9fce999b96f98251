"""The command line: what is asked, what is printed, and exit codes for scripts.

0: as it should be. 1: the event is not in Svix. 2: wrong usage or settings. 3: the ledger or Svix
could not be asked.
"""

import asyncio
import json
import os
import sys
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import click

from relay.config import ConfigurationError, Settings
from relay.ledger import LedgerUnavailable
from relay.operate import whereabouts
from relay.operate.svix import SvixView
from relay.operate.whereabouts import Place, Whereabouts
from relay.service import ledger_opener

_NOT_IN_SVIX, _USAGE, _NO_ANSWER = 1, 2, 3

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


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
def main() -> None:
    """Look into the relay: reads the same environment variables as the function."""


@main.command()
@click.argument("event_id")
@click.option("--project", required=True, help="The event's project: its Svix application.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for scripts.")
def inspect(event_id: str, project: str, *, as_json: bool) -> None:
    """Say where one event is: in the ledger, in Svix, at the customer's endpoints.

    Exit status: 0 it is in Svix; 1 it is not; 2 wrong usage or settings; 3 the ledger or Svix could
    not be asked.
    """
    settings = _settings()
    try:
        found = asyncio.run(_find(settings, project, event_id))
    except LedgerUnavailable as failure:
        click.echo(f"The ledger could not be asked: {failure}", err=True)
        sys.exit(_NO_ANSWER)
    click.echo(json.dumps(_as_json(found), indent=2) if as_json else _as_text(found))
    if found.svix_silent:
        sys.exit(_NO_ANSWER)
    sys.exit(0 if found.place.is_in_svix else _NOT_IN_SVIX)


def _settings() -> Settings:
    try:
        return Settings.from_environment(os.environ)
    except ConfigurationError as fault:
        click.echo(str(fault), err=True)
        sys.exit(_USAGE)


async def _find(settings: Settings, project: str, event_id: str) -> Whereabouts:
    archive = ledger_opener(settings)()
    svix = SvixView(settings.svix_token, settings.svix_server_url)
    lease = timedelta(seconds=settings.lease)
    try:
        return await whereabouts.find(archive, svix, project, event_id, lease)
    finally:
        await archive.close()


def _as_text(found: Whereabouts) -> str:
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
        lines.append(f"            {letter.reason}: {letter.detail}"[:80])
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


def _as_json(found: Whereabouts) -> dict[str, object]:
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


def _where(url: str) -> str:
    """An endpoint without its query, which may hold a customer's secret."""
    parts = urlsplit(url)
    return f"{parts.hostname}{parts.path}"[:66]


def _iso(when: datetime | None) -> str | None:
    return None if when is None else when.isoformat()


def _time(when: datetime | None) -> str:
    return "-" if when is None else f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
