"""What became of an event. Judged by what was published and by what Svix and the endpoints hold.

The function under test is not asked: it may be wrong about itself.
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
    """How many different webhooks its customer has taken; None: the customer has no endpoint."""
    is_pending: bool
    """Whether Pub/Sub still has a copy that it will push (again)."""
    is_kept: bool
    """Whether somebody can find it: among the function's dead letters, or in the topic for them."""


def fate(evidence: Evidence) -> Fate:
    """The first row that applies."""
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
