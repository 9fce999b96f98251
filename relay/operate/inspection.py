"""Collects all that the ledger and Svix know about one event, and locates the event."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from relay.ledger import Archive, key_of
from relay.operate.svix import SvixUnavailable, SvixView
from relay.operate.whereabouts import (
    Attempt,
    Destinations,
    Endpoint,
    Evidence,
    Message,
    SvixAnswer,
    Whereabouts,
    locate,
)


@dataclass(frozen=True, slots=True)
class Inspection:
    """One event, the evidence about it, and where it is."""

    project: str
    event_id: str
    evidence: Evidence
    where: Whereabouts
    svix_failure: str | None
    """Why Svix gave no usable answer; None if it gave one."""


async def inspect(archive: Archive, svix: SvixView, project: str, event_id: str) -> Inspection:
    """Ask the ledger and Svix about one event. Raises `LedgerUnavailable`.

    If Svix fails, `svix_failure` says so.
    """
    record = await archive.record(key_of(project, event_id))
    letters = [each async for each in archive.dead_letters(project=project, event_id=event_id)]
    answer, failure = None, None
    try:
        message = await svix.message(project, event_id)
        destinations = await _destinations(svix, project, message) if message else None
        answer = SvixAnswer(message, destinations)
    except SvixUnavailable as unavailable:
        failure = str(unavailable)
    evidence = Evidence(now=datetime.now(UTC), record=record, letters=letters, svix=answer)
    return Inspection(project, event_id, evidence, locate(evidence), failure)


async def _destinations(svix: SvixView, project: str, message: Message) -> Destinations:
    endpoints = await svix.endpoints(project)
    attempts = await svix.attempts(project, message.id)
    retried_at = await svix.next_attempts(project, message.id) if attempts else {}
    known = {endpoint.id for endpoint in endpoints}
    deleted = {each.endpoint_id: each for each in attempts if each.endpoint_id not in known}
    found = [replace(each, next_attempt=retried_at.get(each.id)) for each in endpoints]
    return Destinations([*found, *map(_deleted, deleted.values())], attempts)


def _deleted(attempt: Attempt) -> Endpoint:
    """A deleted endpoint, as one of its attempts describes it."""
    return Endpoint(id=attempt.endpoint_id, host=attempt.host, created_at=attempt.at, deleted=True)
