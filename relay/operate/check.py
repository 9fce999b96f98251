"""Would a delivery work from here? The token, the ledger, the clocks; what is wrong and what to do.

Settings are not among them: without them nothing can be asked.
"""

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from relay.ledger import Archive, DeadLetter, LedgerUnavailable
from relay.operate.svix import SvixSilent, SvixView

_SKEW = timedelta(seconds=60)
"""Leases are judged by the ledger's clock alone; ours dates what is to expire, and the log."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried; `advice` says what to do where it is not well."""

    subject: str
    said: str
    advice: str | None = None


async def token(svix: SvixView) -> Finding:
    """Does Svix take the token?"""
    try:
        async for _ in svix.applications():
            break
    except SvixSilent as silence:
        return Finding("token", "not usable", str(silence))
    return Finding("token", "Svix takes it")


async def ledger(archive: Archive) -> list[Finding]:
    """Does the ledger take a write, give it back, and does its clock agree with ours?

    What is written is a dead letter, removed again: no delivery looks at those.
    """
    probe = DeadLetter(b"", "check", "written by `check`", message_id=f"check-{uuid.uuid4()}")
    try:
        await archive.park(probe)
        found = await archive.dead_letter(probe.id)
        await archive.remove(probe.id)
    except LedgerUnavailable as failure:
        return [Finding("ledger", "not usable", str(failure))]
    if found is None or found.parked_at is None:
        return [Finding("ledger", "lost what was written", "look at the database itself")]
    skew = datetime.now(UTC) - found.parked_at
    clock = Finding("clock", f"{abs(skew.total_seconds()):.1f} s from the ledger's")
    if abs(skew) > _SKEW:
        clock = Finding("clock", clock.said, "set this machine's clock (ntp)")
    return [Finding("ledger", "writes, reads and deletes"), clock]
