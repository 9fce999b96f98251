"""Checks whether a delivery would work from this machine: the token, the ledger and the clock.

Settings that are missing or not valid end the command before any check.
"""

import textwrap
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from relay.config import Settings
from relay.envelope import Names, Source
from relay.ledger import Archive, DeadLetter, LedgerUnavailable
from relay.operate.render import cut
from relay.operate.svix import SvixUnavailable, SvixView
from relay.outcome import Outcome, Result

_SKEW = timedelta(seconds=60)
"""The maximum difference between this machine's clock and the ledger's. Leases are judged by the
ledger's clock only. This machine's clock is used for expiry times and log lines."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was checked. `advice` says what to do if there is a fault."""

    subject: str
    result: str
    advice: str | None = None


async def check_token(svix: SvixView) -> Check:
    """Check that Svix accepts the token."""
    try:
        await svix.accepts_token()
    except SvixUnavailable as failure:
        return Check("token", "not usable", str(failure))
    return Check("token", "Svix accepts it")


async def check_ledger(archive: Archive) -> list[Check]:
    """Check that the ledger writes, reads and deletes, and that its clock agrees with ours.

    Writes a dead letter, which no delivery reads, and deletes it again.
    """
    source = Source(pushed=True, message_id=f"check-{uuid.uuid4()}")
    probe = DeadLetter.of(
        Result(outcome=Outcome.MALFORMED, detail="written by `check`"), source, Names()
    )
    try:
        await archive.park(probe)
        found = await archive.dead_letter(probe.id)
        await archive.delete_dead_letter(probe.id)
    except LedgerUnavailable as failure:
        return [Check("ledger", "not usable", str(failure))]
    if found is None or found.parked_at is None:
        return [Check("ledger", "lost what was written", "look at the database itself")]
    skew = datetime.now(UTC) - found.parked_at
    clock = Check("clock", f"{abs(skew.total_seconds()):.1f} s from the ledger's")
    if abs(skew) > _SKEW:
        clock = Check("clock", clock.result, "set this machine's clock (ntp)")
    return [Check("ledger", "writes, reads and deletes"), clock]


def settings(read: Settings) -> dict[str, object]:
    """The settings, without the token and the log level."""
    firestore = f"Firestore, database {read.firestore_database}"
    no_project = "not needed" if read.ledger_path else "as Google's credentials say"
    return {
        "svix": read.svix_server_url or "by the token's region",
        "ledger": f"sqlite:{read.ledger_path}" if read.ledger_path else firestore,
        "project": read.google_cloud_project or no_project,
        "create_applications": read.create_applications,
        "request_budget": read.request_budget,
        "function_timeout": read.function_timeout,
        "ack_deadline": read.ack_deadline,
        "bodies_mib": read.bodies_mib,
        "event_tags": ",".join(read.event_tags),
    }


def render(read: Mapping[str, object], found: Sequence[Check]) -> str:
    """The settings and the checks, as text."""
    lines = [cut(f"  {name:20}{value}") for name, value in read.items()]
    lines.append("")
    for each in found:
        lines.append(cut(f"{'FAULT' if each.advice else 'ok':7}{each.subject:8}{each.result}"))
        if each.advice:
            indent = " " * 15
            lines += textwrap.wrap(each.advice, 80, initial_indent=indent, subsequent_indent=indent)
    return "\n".join(lines)
