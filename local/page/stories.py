"""The four stories. Each shows what the relay is for: both functions go through the same trouble.

A story is a list of steps. A step is a sentence, and what is done while the page shows it. Both
functions get the same events and the same trouble at the same time. The outcome is counted, not
scripted.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from local.page.lane import PROJECTS, Draft, Lane, Trouble, make_events
from local.page.verdict import Fate

_SHORTEST_WAIT = 8.0  # seconds that the last events have to arrive, even in a shortened story
_LONGEST_BACK_OFF = 20.0  # seconds for which the nacks of one crash may delay the next pushes
_CALL_SECONDS = 1.5  # from a push to the call to Svix, with time to spare
_POLL = 0.1  # seconds between two polls of whether everything has arrived
_NOISY, *_QUIET = PROJECTS


class Stage:
    """What a story does to both lanes. `scale` multiplies its counts and pauses, to shorten it."""

    def __init__(self, lanes: Sequence[Lane], scale: float) -> None:
        self.lanes = lanes
        self.finished_at: dict[str, float] = {}
        """By lane name: when the lane had no event on its way any more."""
        self._scale = scale
        self._steady: asyncio.Task[None] | None = None

    def publish(self, count: int, projects: Sequence[str]) -> None:
        """Publish new events, `count` times the scale."""
        self._publish(make_events(max(1, round(count * self._scale)), projects))

    def limit(self, rate: float) -> None:
        """Set how many calls a second Svix takes."""
        for lane in self.lanes:
            lane.set_limit(rate)

    async def trouble(self, trouble: Trouble, app: str | None = None) -> None:
        """Set what is wrong with Svix from now on. With `app`, only that customer is affected."""
        for lane in self.lanes:
            await lane.set_trouble(trouble, app)

    async def kill_all(self) -> None:
        """Kill every instance (SIGKILL). Svix works again before the new instances are up."""
        kills = [asyncio.create_task(lane.kill(len(lane.stack.instances))) for lane in self.lanes]
        await asyncio.sleep(0)  # the signals are sent when the tasks have begun
        await self.trouble(Trouble.NONE)
        await asyncio.gather(*kills)

    async def wait_until_under_way(self) -> None:
        """Wait until every function has pushes and has begun its calls to Svix."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LONGEST_BACK_OFF):
                while not all(lane.is_busy for lane in self.lanes):  # noqa: ASYNC110 - nothing signals it
                    await asyncio.sleep(_POLL)
        await asyncio.sleep(_CALL_SECONDS)

    async def pause(self, seconds: float) -> None:
        """Wait for `seconds` times the scale."""
        await asyncio.sleep(seconds * self._scale)

    def begin_steady(self, per_second: int, projects: Sequence[str]) -> None:
        """Begin to publish a steady number of events a second."""

        async def publish() -> None:
            loop = asyncio.get_running_loop()
            started, count = loop.time(), 0
            while True:
                self._publish(make_events(1, projects[count % len(projects) :]))
                count += 1
                await asyncio.sleep(started + count / per_second - loop.time())

        self._steady = asyncio.create_task(publish())

    async def end_steady(self) -> None:
        """Stop publishing."""
        if self._steady is not None:
            self._steady.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._steady

    async def wait_until_finished(self, seconds: float) -> None:
        """Wait until no lane has an event on its way, at most `seconds` times the scale."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(_SHORTEST_WAIT, seconds * self._scale)):
                while len(self.finished_at) < len(self.lanes):
                    # No lane signals that an event has arrived, so poll.
                    await asyncio.sleep(_POLL)
                    for lane in self.lanes:
                        await lane.poll()
                        if not lane.on_their_way:
                            self.finished_at.setdefault(lane.name, time.time())

    def _publish(self, drafts: list[Draft]) -> None:
        for lane in self.lanes:
            lane.publish(drafts)


@dataclass(frozen=True, slots=True)
class Step:
    """A sentence, and what is done while it is shown."""

    sentence: str
    play: Callable[[Stage], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Story:
    """One story. If `quiet` names customers, the outcome says how long their events took."""

    name: str
    title: str
    about: str
    steps: tuple[Step, ...]
    quiet: frozenset[str] = frozenset()


async def _backlog(stage: Stage) -> None:
    stage.limit(25)
    stage.publish(1000, PROJECTS)
    await stage.pause(8)


async def _steady(stage: Stage) -> None:
    stage.begin_steady(20, PROJECTS)
    await stage.pause(6)


async def _fails(stage: Stage) -> None:
    await stage.trouble(Trouble.FAILS)
    await stage.pause(8)


async def _hangs(stage: Stage) -> None:
    await stage.trouble(Trouble.HANGS)
    await stage.pause(12)


async def _down(stage: Stage) -> None:
    await stage.trouble(Trouble.DOWN)
    await stage.pause(6)


async def _back(stage: Stage) -> None:
    await stage.trouble(Trouble.NONE)
    await stage.pause(6)
    await stage.end_steady()
    await stage.wait_until_finished(20)


async def _others(stage: Stage) -> None:
    stage.limit(25)
    stage.begin_steady(10, _QUIET)
    await stage.pause(5)


async def _poison(stage: Stage) -> None:
    await stage.trouble(Trouble.FAILS, _NOISY)
    stage.publish(20, [_NOISY])
    await stage.pause(14)


async def _flood(stage: Stage) -> None:
    await stage.trouble(Trouble.NONE)
    stage.publish(300, [_NOISY])
    await stage.pause(15)


async def _rest(stage: Stage) -> None:
    await stage.end_steady()
    await stage.wait_until_finished(25)


async def _crash_before(stage: Stage) -> None:
    await stage.trouble(Trouble.HANGS)
    stage.publish(40, PROJECTS)
    await stage.wait_until_under_way()
    await stage.kill_all()
    await stage.pause(5)


async def _crash_after(stage: Stage) -> None:
    await stage.trouble(Trouble.STORES_AND_HANGS)
    stage.publish(40, PROJECTS)
    await stage.wait_until_under_way()
    await stage.kill_all()
    await stage.pause(5)


async def _finish_backlog(stage: Stage) -> None:
    await stage.wait_until_finished(50)


async def _finish_crashes(stage: Stage) -> None:
    await stage.wait_until_finished(45)


STORIES = (
    Story(
        "backlog",
        "A backlog against a limit",
        "1,000 events at once, and Svix takes 25 calls a second.",
        (
            Step(
                "Svix takes 25 calls a second from now on. 1,000 events of twenty customers are "
                "published at once, for both functions.",
                _backlog,
            ),
            Step(
                "The relay keeps the events waiting and sends them at the rate that Svix allows. "
                "The obvious function hands each refusal back to Pub/Sub, which then slows down "
                "everything.",
                _finish_backlog,
            ),
        ),
    ),
    Story(
        "outage",
        "An outage",
        "Svix fails, hangs and goes down, while 20 events a second come in.",
        (
            Step("Twenty events a second are published, and Svix works.", _steady),
            Step("Svix answers 500 to every call.", _fails),
            Step("Svix takes calls and never answers.", _hangs),
            Step("Svix is down: it refuses connections.", _down),
            Step(
                "Svix is back. The relay sends what has waited. The obvious function marks each "
                "event before it calls Svix. If the call gets no answer, the mark stays, and the "
                "function treats the retry as a duplicate.",
                _back,
            ),
        ),
    ),
    Story(
        "noisy",
        "A noisy customer",
        "One customer's events fail, then flood in. Do the others notice?",
        (
            Step(
                "Nineteen customers publish ten events a second in total. Svix takes 25 calls a "
                "second.",
                _others,
            ),
            Step(
                f"A twentieth, {_NOISY}, publishes 20 events, and Svix answers 500 to each, "
                "again and again.",
                _poison,
            ),
            Step(f"Now {_NOISY}'s events work, and it publishes 300 at once.", _flood),
            Step("Nothing more is published. The remaining events arrive.", _rest),
        ),
        quiet=frozenset(_QUIET),
    ),
    Story(
        "crashes",
        "Crashes",
        "The function is killed before Svix accepts the events, then after.",
        (
            Step(
                "40 events are published. Svix receives the calls but stores nothing. Then every "
                "instance is killed (kill -9), and new ones start.",
                _crash_before,
            ),
            Step(
                "40 more events are published. This time Svix stores the events. Then every "
                "instance is killed before it gets the answers.",
                _crash_after,
            ),
            Step(
                "Pub/Sub redelivers the events. The dead instances' claims end after 30 seconds. "
                "Then the relay sends again, and Svix recognises the events that it has. The "
                "obvious function finds its own mark and treats the event as delivered.",
                _finish_crashes,
            ),
        ),
    ),
)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of the values does not exceed; 0 if there are none."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else 0.0


def outcome(story: Story, lane: Lane, began_at: float, finished_at: float | None) -> dict[str, Any]:
    """The outcome of a story in one lane: the verdict, and a sentence for the page."""
    counted = lane.journal.verdict()
    ended_at = finished_at or time.time()
    parts = [f"{counted['once']:,} of {counted['published']:,} delivered once"]
    parts += [
        f"{counted[fate.name.lower()]:,} {fate}"
        for fate in (Fate.LOST, Fate.TWICE, Fate.PARKED)
        if counted[fate.name.lower()]
    ]
    if waiting := counted["on_its_way"]:
        parts.append(f"{waiting:,} on their way after {ended_at - began_at:.0f} s")
    else:
        parts.append(f"finished after {ended_at - began_at:.0f} s")
    sentence = f"{lane.title}: {', '.join(parts)}."
    if story.quiet:
        sentence += " " + _others_notice(story, lane)
    return {"verdict": counted, "seconds": ended_at - began_at, "sentence": sentence}


def _others_notice(story: Story, lane: Lane) -> str:
    """A sentence on how long the quiet customers' events took.

    Events that have not arrived count with the time that they have taken so far.
    """
    now = time.time()
    delays = []
    for event in lane.journal.events.values():
        if event.key[0] in story.quiet:
            delay = lane.journal.delay(event)
            delays.append(now - event.messages[0].published_at if delay is None else delay)
    return (
        f"The others' events took {percentile(delays, 0.5):.1f} s (median) and "
        f"{percentile(delays, 0.99):.1f} s (p99)."
    )


async def _to_the_end(*work: Coroutine[Any, Any, None]) -> None:
    """Do all the work, even if cancelled meanwhile: a half-restarted lane could not be used."""
    doing = asyncio.gather(*work)
    try:
        await asyncio.shield(doing)
    except asyncio.CancelledError:
        await doing
        raise


class StoryPlayer:
    """Plays one story at a time, and keeps the outcome of the last."""

    def __init__(self, lanes: Sequence[Lane], scale: float = 1.0) -> None:
        self._lanes = lanes
        self._scale = scale
        self._playing: asyncio.Task[None] | None = None
        self._shown: dict[str, Any] | None = None

    @property
    def is_playing(self) -> bool:
        """Whether a story is being played."""
        return self._playing is not None and not self._playing.done()

    def begin(self, name: str) -> None:
        """Play the story of this name. Raises `KeyError` if there is none."""
        story = {story.name: story for story in STORIES}[name]
        self._playing = asyncio.create_task(self._play(story))

    async def end(self) -> None:
        """End the story that is playing, if any."""
        if self._playing is not None:
            self._playing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._playing

    def forget(self) -> None:
        """Stop showing the last story, because its events are gone."""
        self._shown = None

    def snapshot(self) -> dict[str, Any] | None:
        """The story that is playing, or else the last one; None if there was none."""
        return self._shown

    async def _play(self, story: Story) -> None:
        outcomes: dict[str, Any] = {}
        shown = {
            "name": story.name,
            "title": story.title,
            "sentences": [step.sentence for step in story.steps],
            "step": -1,
            "state": "starting",
            "outcomes": outcomes,
        }
        self._shown = shown
        stage = Stage(self._lanes, self._scale)
        try:
            await _to_the_end(*(lane.restart() for lane in self._lanes))
            began_at = time.time()
            shown["state"] = "playing"
            for number, step in enumerate(story.steps):
                shown["step"] = number
                await step.play(stage)
            for lane in self._lanes:
                await lane.poll()
                finished_at = stage.finished_at.get(lane.name)
                outcomes[lane.name] = outcome(story, lane, began_at, finished_at)
            shown["state"] = "ended"
        except BaseException as failure:
            shown["state"] = "stopped"
            if not isinstance(failure, asyncio.CancelledError):
                shown["failure"] = f"{type(failure).__name__}: {failure}"
            raise
        finally:
            await stage.end_steady()
            await stage.trouble(Trouble.NONE)
