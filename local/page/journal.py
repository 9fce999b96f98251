"""What has happened in one stack: counts, a chart of two minutes, and the life of each event.

`poll` reads what is new in the stack, in Svix and at the endpoints. It is called a few times a
second. Times are seconds since 1970.
"""

import bisect
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from local.behaviour import Call
from local.messages import Message, Push
from local.page import steps
from local.page.steps import Key, Pacer
from local.page.verdict import Evidence, Fate, fate
from local.stack import Instance, Stack

CHART_SECONDS = 120
SERIES = ("published", "accepted", "refused", "nacked", "received")
_ROWS = 40
_PACER_STALE_SECONDS = 3.0  # the relay writes one line a second


def key_of(message: Message) -> Key:
    """The key of the message's event. A message without an event has a key of its own."""
    return message.project or "", message.event_id or f"message {message.number}"


@dataclass(slots=True, eq=False)
class Event:
    """One event that was published here, by one message or by several."""

    key: Key
    messages: list[Message] = field(default_factory=list)
    steps: list[tuple[float, int, str]] = field(default_factory=list)
    """Each step's time, instance number, and name in the relay's log."""
    in_svix: list[tuple[float, str]] = field(default_factory=list)
    """The time of each acceptance by Svix, and the message's id."""
    webhooks: dict[str, float] = field(default_factory=dict)
    """When the customer's endpoint took each webhook, by the webhook's id."""
    fate: Fate = Fate.ON_ITS_WAY

    @property
    def is_pending(self) -> bool:
        """Whether Pub/Sub will push one of its messages (again)."""
        return any(m.acked_at is None and not m.is_dead_letter for m in self.messages)

    @property
    def acked_at(self) -> float:
        """When the last of its messages was acknowledged."""
        return max((m.acked_at or 0.0 for m in self.messages), default=0.0)


@dataclass(frozen=True, slots=True)
class Letters:
    """The function's dead letters at the time `at`: their events, and their messages' ids."""

    at: float = 0.0
    events: frozenset[Key] = frozenset()
    messages: frozenset[str] = frozenset()


class Journal:
    """The record of one stack. `poll` reads what is new; the other methods show what was read."""

    def __init__(self) -> None:
        self.events: dict[Key, Event] = {}
        self.fates: Counter[Fate] = Counter()
        self.calls: Counter[str] = Counter()
        """Calls to Svix that create a message: accepted, refused (429) and failed."""
        self.nacks = 0
        self.received = 0
        """Different webhooks that the customers have taken."""
        self.failing = 0
        """Messages in Svix whose last attempt at the customer's endpoint failed."""
        self.by_hand = 0
        """Messages in Svix that were not published here."""
        self.unexplained: set[Key] = set()
        """Events that are acknowledged, not in Svix, and not among the dead letters read last."""
        self._chart: dict[int, Counter[str]] = {}
        self._pacers: dict[int, tuple[float, Pacer]] = {}
        self._touched: set[Key] = set()
        self._delays: list[float] = []
        self._letters = Letters()
        self._sent_on: dict[str, Event] = {}
        """Events in Svix that have not reached their endpoint yet, by the message's id."""
        self._answered = self._held = self._received = 0
        self._last_call: Call | None = None

    def published(self, message: Message) -> None:
        """A message was published."""
        key = key_of(message)
        event = self.events.get(key)
        if event is None:
            event = self.events[key] = Event(key)
            self.fates[event.fate] += 1
        event.messages.append(message)
        self._touched.add(key)
        self._count(message.published_at, "published")

    def logged(self, instance: Instance, line: bytes) -> None:
        """An instance wrote a line to its log."""
        match steps.read(line):
            case steps.Step(key=key, name=name, at=at) if event := self.events.get(key):
                event.steps.append((at, instance.number, name))
            case Pacer() as pacer:
                self._pacers[instance.number] = (time.time(), pacer)

    def poll(self, stack: Stack, letters: Letters) -> None:
        """Read what is new, and judge each affected event again."""
        for message, push in stack.answered[self._answered :]:
            self._touched.add(key_of(message))
            if not push.is_ack:
                self.nacks += 1
                self._count(push.answered_at or 0.0, "nacked")
        self._answered = len(stack.answered)
        self._read_svix(stack)
        self._read_endpoints(stack)
        if letters is not self._letters:
            self._letters = letters
            self._touched |= self.unexplained
        for key in self._touched:
            self._judge(self.events[key])
        self._touched.clear()
        self._forget_old()

    def _read_svix(self, stack: Stack) -> None:
        for stored in stack.simulator.messages[self._held :]:
            event = self.events.get((stored.app, stored.event_id or ""))
            if event is None:
                self.by_hand += 1
            else:
                event.in_svix.append((stored.received_at.timestamp(), stored.id))
                self._touched.add(event.key)
                self._sent_on[stored.id] = event
        self._held = len(stack.simulator.messages)
        ahead = time.time() - time.monotonic()
        newest = self._last_call
        for call in reversed(stack.simulator.calls):
            if call is self._last_call:
                break
            newest = call if newest is self._last_call else newest
            if call.method == "POST" and "/msg" in call.path:
                self._count_call(call.at + ahead, call.status)
        self._last_call = newest

    def _read_endpoints(self, stack: Stack) -> None:
        for webhook in stack.endpoints.received[self._received :]:
            event = self._sent_on.pop(webhook.message_id, None) if webhook.is_taken else None
            if event is not None:
                event.webhooks[webhook.message_id] = webhook.at
                self._touched.add(event.key)
                self.received += 1
                self._count(webhook.at, "received")
        self._received = len(stack.endpoints.received)
        last = stack.simulator.store.last_attempts
        self.failing = sum(
            any(not attempt.succeeded for attempt in last(message_id).values())
            for message_id in self._sent_on
        )

    def _count_call(self, at: float, status: int) -> None:
        if status == HTTPStatus.ACCEPTED:
            self.calls["accepted"] += 1
            self._count(at, "accepted")
        else:
            refused = status == HTTPStatus.TOO_MANY_REQUESTS
            self.calls["refused" if refused else "failed"] += 1
            self._count(at, "refused")

    def _judge(self, event: Event) -> None:
        is_kept = (
            event.key in self._letters.events
            or any(str(m.number) in self._letters.messages for m in event.messages)
            or any(m.is_dead_letter for m in event.messages)
        )
        evidence = Evidence(len(event.in_svix), len(event.webhooks), event.is_pending, is_kept)
        found = fate(evidence)
        self.unexplained.discard(event.key)
        if found is Fate.LOST:
            self.unexplained.add(event.key)
            if self._letters.at <= event.acked_at:
                found = Fate.ON_ITS_WAY  # the dead letters have not been read since the ack
        if found is Fate.ONCE is not event.fate:
            bisect.insort(self._delays, self.delay(event) or 0.0)
        if found is not event.fate:
            self.fates[event.fate] -= 1
            self.fates[found] += 1
            event.fate = found

    def delay(self, event: Event) -> float | None:
        """Seconds from publishing until the customer had the event; None if it has not."""
        if not event.webhooks:
            return None
        return max(0.0, min(event.webhooks.values()) - event.messages[0].published_at)

    @property
    def to_send_on(self) -> int:
        """Messages in Svix that have not reached their customer yet."""
        return len(self._sent_on)

    # -- shown

    def verdict(self) -> dict[str, Any]:
        """The numbers of the page's first table."""
        delays = self._delays
        missing = self.fates[Fate.ON_ITS_WAY] + self.fates[Fate.LOST]
        half = (len(delays) + missing - 1) // 2
        return {
            "published": len(self.events),
            **{found.name.lower(): self.fates[found] for found in Fate},
            "by_hand": self.by_hand,
            # `typical` is None until half of the events have reached their customer, `slowest`
            # until all have. A lost event never does.
            "typical": delays[half] if 0 <= half < len(delays) else None,
            "slowest": delays[-1] if delays and not missing else None,
        }

    def pacer(self, instance: Instance) -> Pacer | None:
        """The pacer's state that the instance logged last; None if that is too old."""
        at, pacer = self._pacers.get(instance.number, (0.0, None))
        return pacer if time.time() - at < _PACER_STALE_SECONDS else None

    def chart(self) -> list[list[int]]:
        """The counts of `SERIES` in each second of the last two minutes, oldest first."""
        now = int(time.time())
        none: Counter[str] = Counter()
        seconds = range(now - CHART_SECONDS, now)
        return [[self._chart.get(s, none)[name] for name in SERIES] for s in seconds]

    def rows(self) -> list[dict[str, Any]]:
        """The last events, the newest first."""
        newest = itertools.islice(reversed(self.events.values()), _ROWS)
        return [
            {
                "project": event.key[0],
                "id": event.key[1],
                "at": event.messages[0].published_at,
                "copies": len(event.messages),
                "pushes": sum(len(message.pushes) for message in event.messages),
                "fate": event.fate,
                "now": _now(event),
                "delay": self.delay(event),
            }
            for event in newest
        ]

    def life(self, key: Key) -> dict[str, Any] | None:
        """All that is known of one event, in order of time; None if there is no such event."""
        event = self.events.get(key)
        if event is None:
            return None
        entries = sorted(_life(event), key=lambda entry: entry[0])
        return {"fate": event.fate, "entries": entries}

    def _count(self, at: float, name: str) -> None:
        self._chart.setdefault(int(at), Counter())[name] += 1

    def _forget_old(self) -> None:
        oldest = time.time() - CHART_SECONDS - 2
        for second in [second for second in self._chart if second < oldest]:
            del self._chart[second]


def _now(event: Event) -> str:
    """Where the event is now, in a word or two."""
    if event.fate is not Fate.ON_ITS_WAY:
        return event.fate
    if event.in_svix:
        return "in Svix"
    last = max(
        (push for message in event.messages for push in message.pushes),
        key=lambda push: push.at,
        default=None,
    )
    if last is None:
        return "in the topic"
    if last.answered_at is not None:
        return "nacked, waiting" if not last.is_ack else "acknowledged"
    if event.steps and event.steps[-1][0] >= last.at:
        return event.steps[-1][2]
    return "pushed"


def _life(event: Event) -> Iterator[tuple[float, str, str]]:
    """The entries of an event's life: when, where, and what happened."""
    for message in event.messages:
        yield message.published_at, "topic", f"published as message {message.number}"
        for attempt, push in enumerate(message.pushes, 1):
            to = "no instance" if push.instance is None else f"instance {push.instance}"
            yield push.at, "topic", f"pushed to {to}" + (f", attempt {attempt}" * (attempt > 1))
            if push.answered_at is not None:
                yield push.answered_at, "topic", _answer(push)
        if message.is_dead_letter:
            at = message.pushes[-1].answered_at or 0.0
            yield at, "topic", "moved to the dead-letter topic"
    for at, instance, step in event.steps:
        yield at, f"instance {instance}", step
    for at, message_id in event.in_svix:
        yield at, "Svix", f"accepted as {message_id}"
    for webhook, at in event.webhooks.items():
        yield at, "endpoint", f"received, svix-id {webhook}"


def _answer(push: Push) -> str:
    if push.is_ack:
        return f"acknowledged ({push.status})"
    return "nacked: " + ("the connection broke" if push.status is None else str(push.status))
