"""What became of an event, judged by what was published and by what Svix and the endpoints hold.

What the function itself says does not count, because it may be wrong.
"""

from dataclasses import dataclass
from enum import StrEnum


class Fate(StrEnum):
    """What became of an event, in the page's words."""

    ON_ITS_WAY = "on its way"
    ONCE = "once"
    PARKED = "parked"
    TWICE = "twice"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of one event from outside the function."""

    messages_in_svix: int
    """How many messages Svix holds for it."""
    webhooks: int | None
    """How many different webhooks its customer has taken; None if the customer has no endpoint."""
    is_pending: bool
    """Whether Pub/Sub still has a message of it to push (again)."""
    is_kept: bool
    """Whether it is a dead letter of the function, or in the dead-letter topic."""


def fate(evidence: Evidence) -> Fate:
    """The event's fate. The first matching row applies."""
    match evidence:
        case Evidence(messages_in_svix=held, webhooks=int(webhooks)) if max(held, webhooks) > 1:
            return Fate.TWICE
        case Evidence(messages_in_svix=held) if held > 1:
            return Fate.TWICE
        case Evidence(messages_in_svix=1, webhooks=None | 1):
            return Fate.ONCE
        case Evidence(messages_in_svix=1) | Evidence(is_pending=True):
            return Fate.ON_ITS_WAY
        case Evidence(is_kept=True):
            return Fate.PARKED
    return Fate.LOST
