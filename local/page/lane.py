"""One function on the page: its stack, its journal, and the actions of the buttons."""

import asyncio
import contextlib
import itertools
import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from local.behaviour import Fault
from local.page.journal import Journal, Letters
from local.page.verdict import Fate
from local.stack import ROOT, Instance, Program, Stack, State
from relay.ledger import LedgerUnavailable
from relay.ledger.sqlite import SqliteLedger

PROJECTS = (
    *("acme", "globex", "initech", "umbrella", "hooli", "stark", "wayne", "wonka", "tyrell"),
    *("cyberdyne", "oscorp", "soylent", "gringotts", "duff", "monarch", "sirius", "vandelay"),
    *("bluth", "dunder", "pied-piper"),
)
_TYPES = ("user.created", "subscription.activated", "usageRecord.updated", "invoice.finalized")
_TOO_LARGE = 1_200_000  # bytes: Svix takes 1 MiB
_POLL = 0.25  # seconds between two polls of what has happened
_MOST_INSTANCES = 4
FREEZE_SECONDS = 8.0
_BEHAVIOUR = {"latency": 0.05, "retry_schedule": (2, 4, 8, 16, 16, 16, 16)}
"""How Svix behaves at first: it takes 50 ms, and its retries are quicker than the real one's."""


class Trouble(StrEnum):
    """What can be wrong with Svix, apart from its limit."""

    NONE = "none"
    REFUSES = "refuses"
    FAILS = "fails"
    HANGS = "hangs"
    LOSES_ANSWERS = "loses answers"
    STORES_AND_HANGS = "stores and hangs"
    DOWN = "down"


_FAULTS = {
    Trouble.REFUSES: Fault("status", status=429, body="json", method="*"),
    Trouble.FAILS: Fault("status", status=500, body="json", method="*"),
    Trouble.HANGS: Fault("hang", method="*"),
    Trouble.LOSES_ANSWERS: Fault("lose_answer"),
    Trouble.STORES_AND_HANGS: Fault("drip"),
}


@dataclass(frozen=True, slots=True)
class Draft:
    """A message to publish. `project` and `event_id` are None if `data` is not a valid event."""

    data: bytes
    project: str | None
    event_id: str | None


_numbers = itertools.count(1)
_run = secrets.token_hex(2)  # makes the ids of each run new, because the ledger may be an old one


def make_events(count: int, projects: Sequence[str], padding: int = 0) -> list[Draft]:
    """Make `count` new events, of the projects in turn, with `padding` extra bytes each."""
    drafts: list[Draft] = []
    for project, kind in zip(itertools.cycle(projects), itertools.cycle(_TYPES), strict=False):
        if len(drafts) == count:
            break
        event_id = f"evt_{_run}_{next(_numbers):05d}"
        event = {"id": event_id, "type": kind, "project": project, "data": {"id": f"sim_{project}"}}
        if padding:
            event["padding"] = "x" * padding
        drafts.append(Draft(json.dumps(event).encode(), project, event_id))
    return drafts


def make_poison(count: int, projects: Sequence[str]) -> list[Draft]:
    """Make events that are too large for Svix."""
    return make_events(count, projects, _TOO_LARGE)


def make_broken(count: int) -> list[Draft]:
    """Make messages that are not valid events: their JSON is cut off."""
    return [Draft(b'{"id": "evt_broken", "type": "user.cre', None, None) for _ in range(count)]


@dataclass(frozen=True, slots=True)
class Kind:
    """A function that has a lane: its name on the page, and how it is run."""

    name: str
    title: str
    does: str
    """What it does with an event, in a few words."""
    program: Program
    has_letters: bool
    """Whether it parks events that can never be sent."""


RELAY = Kind(
    "relay",
    "The relay",
    "waits, claims, sends, records",
    Program(ROOT / "main.py", "LEDGER", "sqlite:{}"),
    has_letters=True,
)
OBVIOUS = Kind(
    "obvious",
    "The obvious function",
    "marks, sends, returns errors",
    Program(ROOT / "bench" / "naive.py", "NAIVE_LEDGER", "{}"),
    has_letters=False,
)


class Lane:
    """A stack that is watched. An async context manager: everything runs while it is entered."""

    def __init__(self, kind: Kind, stack: Stack) -> None:
        self.name, self.title, self.does = kind.name, kind.title, kind.does
        self.stack = stack
        self.journal = Journal()
        self.trouble = Trouble.NONE
        self._has_letters = kind.has_letters
        self._letters = Letters()
        self._published: list[Draft] = []
        self._entered = contextlib.AsyncExitStack()
        self._watching: asyncio.Task[None] | None = None
        self._is_restarting = False
        stack.observe = self._logged

    @classmethod
    def of(cls, kind: Kind, directory: Path, **more: Any) -> Self:
        """A lane with a stack of its own. `more` are further arguments of `Stack`."""
        directory.mkdir()
        return cls(kind, Stack(kind.program, directory, behaviour=_BEHAVIOUR, **more))

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self.stack)
            self._watching = asyncio.create_task(self._watch())
            stack.push_async_callback(_end, self._watching)
            self._entered = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._entered.aclose()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_POLL)
            await self.poll()

    async def poll(self) -> None:
        """Read what is new into the journal."""
        if self.journal.unexplained:
            self._letters = await self._read_letters()
        self.journal.poll(self.stack, self._letters)

    def _logged(self, instance: Instance, line: bytes) -> None:
        self.journal.logged(instance, line)

    async def _read_letters(self) -> Letters:
        """The relay's dead letters, from its ledger's file. The obvious function has none."""
        at = time.time()
        if not self._has_letters or not self.stack.ledger.exists():
            return Letters(at)
        ledger = SqliteLedger(self.stack.ledger, create=False)
        try:
            letters = [letter async for letter in ledger.dead_letters()]
        except LedgerUnavailable:
            return self._letters  # the next poll reads them
        finally:
            await ledger.close()
        return Letters(
            at,
            frozenset((x.project, x.event_id) for x in letters if x.project and x.event_id),
            frozenset(letter.message_id for letter in letters if letter.message_id),
        )

    # -- actions

    def publish(self, drafts: Sequence[Draft]) -> None:
        """Publish them all at once."""
        for draft in drafts:
            message = self.stack.publish(draft.data, draft.project, draft.event_id)
            self.journal.published(message)
        self._published += [draft for draft in drafts if draft.event_id is not None]

    def publish_again(self, count: int) -> None:
        """Publish the last `count` events again, like a publisher that got no answer."""
        self.publish(list({draft.event_id: draft for draft in self._published}.values())[-count:])

    async def set_trouble(self, trouble: Trouble, app: str | None = None) -> None:
        """Set what is wrong with Svix from now on. With `app`, only that customer is affected."""
        self.trouble = trouble
        self.stack.simulator.clear_faults()
        if trouble is Trouble.DOWN:
            await self.stack.stop_svix()
            return
        await self.stack.start_svix()
        if fault := _FAULTS.get(trouble):
            self.stack.simulator.inject(replace(fault, app=app))

    def set_limit(self, rate: float | None) -> None:
        """Set how many calls a second Svix takes; None: any number."""
        behaviour = self.stack.simulator.behaviour
        behaviour.rate, behaviour.burst = rate, max(rate or 1.0, 1.0)
        behaviour.retry_after = "seconds"

    async def kill(self, count: int = 1) -> None:
        """Kill `count` instances (SIGKILL), those with the most outstanding pushes first."""
        running = sorted(self._running(), key=lambda instance: -instance.outstanding)
        await asyncio.gather(*map(self.stack.kill, running[:count]))

    def freeze(self, seconds: float = FREEZE_SECONDS) -> None:
        """Freeze the instance with the most outstanding pushes for this many seconds."""
        up = [instance for instance in self._running() if instance.state is State.UP]
        if up:
            self.stack.freeze(max(up, key=lambda instance: instance.outstanding), seconds)

    async def scale(self, change: int) -> None:
        """Add or remove an instance."""
        count = len(self._running()) + change
        if 1 <= count <= _MOST_INSTANCES:
            await self.stack.scale(count)

    async def restart(self) -> None:
        """Start over."""
        self._is_restarting = True
        try:
            await self.stack.restart(self._empty)
        finally:
            self._is_restarting = False

    def _empty(self) -> None:
        self.trouble = Trouble.NONE
        self._letters = Letters()
        self._published = []
        self.journal = Journal()

    def _running(self) -> list[Instance]:
        return [instance for instance in self.stack.instances if instance.is_running]

    # -- shown

    @property
    def on_their_way(self) -> int:
        """The number of events whose fate is still open."""
        return self.journal.fates[Fate.ON_ITS_WAY]

    @property
    def is_busy(self) -> bool:
        """Whether the function holds more pushes than wait in the topic."""
        subscription = self.stack.subscription
        return subscription.outstanding > subscription.backlog

    def snapshot(self) -> dict[str, Any]:
        """All the numbers of this lane. Raises the watching task's exception if it has failed."""
        if self._watching is not None and self._watching.done():
            self._watching.result()
        stack, journal = self.stack, self.journal
        subscription, behaviour = stack.subscription, stack.simulator.behaviour
        return {
            "title": self.title,
            "does": self.does,
            "is_restarting": self._is_restarting,
            "most_instances": _MOST_INSTANCES,
            "verdict": journal.verdict(),
            "topic": {
                "published": len(stack.messages),
                "backlog": subscription.backlog,
                "outstanding": subscription.outstanding,
                "window": subscription.window,
                "acked": len(subscription.acked),
                "nacks": journal.nacks,
                "dead_letters": len(subscription.dead_lettered),
                "pause": subscription.pause_remaining,
            },
            "instances": [self._instance(instance) for instance in stack.instances],
            "svix": {
                "accepted": journal.calls["accepted"],
                "refused": journal.calls["refused"],
                "failed": journal.calls["failed"],
                "limit": behaviour.rate,
                "trouble": self.trouble,
            },
            "endpoints": {
                "received": journal.received,
                "to_send_on": journal.to_send_on,
                "failing": journal.failing,
                "answer": stack.endpoints.answer,
            },
            "chart": journal.chart(),
            "rows": journal.rows(),
        }

    def _instance(self, instance: Instance) -> dict[str, Any]:
        pacer = self.journal.pacer(instance)
        shown: dict[str, Any] = {
            "number": instance.number,
            "state": instance.state,
            "outstanding": instance.outstanding,
        }
        if pacer is not None:
            shown |= {
                "waiting": pacer.waiting,
                "in_flight": pacer.in_flight,
                "rate": pacer.rate,
                "is_paused": pacer.is_paused,
            }
        return shown


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel a task. Raises the task's failure if it has failed."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
