"""`make run ARGS="--rate 20 --outage"`: a stream of events through a rate limit and an outage.

Events are published at twice the limit. Each second a line says where they are. At the end each
event must be one message in Svix and must have reached its customer once.
"""

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass
from http import HTTPStatus

from local.page.lane import Draft, Lane, Trouble

_SECONDS = 15  # for which events are published
_UNLIMITED = 50.0  # events a second if Svix has no limit
_OUTAGE_AT, _OUTAGE_SECONDS = 6.0, 6.0
_PROJECTS = ("initech", "hooli", "umbrella")
_GIVE_UP_AFTER = 300.0  # seconds


@dataclass(frozen=True, slots=True)
class Stream:
    """Sends a stream of events through a lane. `rate` is Svix's calls a second; None: no limit."""

    lane: Lane
    rate: float | None
    outage: bool

    @property
    def per_second(self) -> float:
        """Events published a second."""
        return 2 * self.rate if self.rate else _UNLIMITED

    @property
    def count(self) -> int:
        """Events in all."""
        return round(self.per_second * _SECONDS)

    @property
    def projects(self) -> dict[str, int]:
        """How many events each project has."""
        return Counter(map(_project, range(self.count)))

    async def run(self) -> bool:
        """Publish the events and wait for them. Returns whether each is in Svix exactly once."""
        self.lane.set_limit(self.rate)
        limit = f"takes {self.rate:g} calls a second" if self.rate else "has no limit"
        outage = f", and is down for {_OUTAGE_SECONDS:g} s" if self.outage else ""
        print(f"\n{self.count} events, {self.per_second:g} a second; Svix {limit}{outage}.\n")
        print(f"{'second':>6} {'published':>9} {'in Svix':>7} {'waiting':>7} {'nacks':>5}  Svix")
        started = time.monotonic()
        before = len(self.lane.stack.simulator.messages)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._publish())
                tasks.create_task(self._outage())
                await self._watch(started, before)
        except* TimeoutError:
            print(f"Gave up after {_GIVE_UP_AFTER:g} s.")
        self.lane.set_limit(None)
        return self._print_result(before, time.monotonic() - started)

    async def _publish(self) -> None:
        started = time.monotonic()
        for number in range(self.count):
            await asyncio.sleep(started + number / self.per_second - time.monotonic())
            project, event_id = _project(number), f"evt_stream_{number}"
            event = {"id": event_id, "type": "usage.recorded", "project": project, "data": {}}
            self.lane.publish([Draft(json.dumps(event).encode(), project, event_id)])

    async def _outage(self) -> None:
        if self.outage:
            await asyncio.sleep(_OUTAGE_AT)
            await self.lane.set_trouble(Trouble.DOWN)
            await asyncio.sleep(_OUTAGE_SECONDS)
            await self.lane.set_trouble(Trouble.NONE)

    async def _watch(self, started: float, before: int) -> None:
        """Print where the events are, until all are acknowledged. Raises TimeoutError."""
        stack = self.lane.stack
        async with asyncio.timeout(_GIVE_UP_AFTER):
            while True:
                published, held = len(stack.messages), len(stack.simulator.messages) - before
                nacks = len(stack.subscription.nacked)
                state = "down" if self.lane.trouble is Trouble.DOWN else ""
                seconds, waiting = time.monotonic() - started, published - held
                numbers = f"{seconds:6.0f} {published:9} {held:7} {waiting:7} {nacks:5}"
                print(f"{numbers}  {state}", flush=True)
                if len(stack.subscription.acked) == self.count:
                    return
                await asyncio.sleep(1)

    def _print_result(self, before: int, seconds: float) -> bool:
        simulator = self.lane.stack.simulator
        held = Counter(message.event_id for message in simulator.messages[before:])
        refused = sum(call.status == HTTPStatus.TOO_MANY_REQUESTS for call in simulator.calls)
        lost, doubled = self.count - len(held), sum(n - 1 for n in held.values())
        print(
            f"\n{self.count} events in {seconds:.0f} s: {lost} lost, {doubled} twice, "
            f"{len(self.lane.stack.subscription.nacked)} nacks; Svix refused {refused} calls."
        )
        return lost == doubled == 0


def _project(number: int) -> str:
    return _PROJECTS[number % len(_PROJECTS)]
