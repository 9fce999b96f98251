"""The requests that wait for a turn: one line per project. The projects get turns round-robin.

Uses no clock and no event loop. Each operation takes logarithmic time, except that choosing a probe
sorts one line. A project is probed a few times a second at most.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import count, filterfalse

_created = count()


@dataclass(eq=False, slots=True)
class Waiter:
    """One request's place in its line. A request keeps its place for all of its attempts."""

    project: str
    event: str
    """The event's key, which is the same for every push of the event."""
    arrived_at: float
    """When the request arrived at the relay, in seconds of the pacer's clock."""
    last_turn: float
    """When the last turn may be given, in seconds of the pacer's clock."""
    order: int = field(default_factory=lambda: next(_created))
    """Breaks the tie between two requests that arrived at the same time."""


class _Line:
    """The waiters of one project, in the order of their arrival."""

    def __init__(self) -> None:
        self.waiting: set[Waiter] = set()
        self._heap: list[tuple[float, int, Waiter]] = []
        """All waiters, and some requests that have left the line, which `take` skips."""

    def join(self, waiter: Waiter) -> None:
        self.waiting.add(waiter)
        heapq.heappush(self._heap, (waiter.arrived_at, waiter.order, waiter))

    def take(self, passed_over: Collection[str]) -> Waiter:
        """Remove the first waiter whose event is not in `passed_over`; if all are, the first."""
        waiter = self._first_except(passed_over) if passed_over else None
        while waiter is None or waiter not in self.waiting:
            _, _, waiter = heapq.heappop(self._heap)
        self.waiting.remove(waiter)
        return waiter

    def _first_except(self, passed_over: Collection[str]) -> Waiter | None:
        in_order = (waiter for _, _, waiter in sorted(self._heap))
        return next((w for w in in_order if w in self.waiting and w.event not in passed_over), None)


class Lines:
    """All lines. A project that is held keeps its line, but gets no turn until it is released."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        """The line of each project with a waiter."""
        self._ready: OrderedDict[str, None] = OrderedDict()
        """The projects that have a waiter and are not held. The next one comes first."""
        self._held: set[str] = set()
        """The projects that get no turn."""
        self._count = 0
        """The number of waiters in all lines."""

    def __len__(self) -> int:
        return self._count

    def join(self, waiter: Waiter) -> None:
        """Add a waiter to its project's line, which is in the order of arrival."""
        line = self._lines.setdefault(waiter.project, _Line())
        line.join(waiter)
        self._count += 1
        self._update(waiter.project)

    def leave(self, waiter: Waiter) -> None:
        """Remove a waiter from its line."""
        self._lines[waiter.project].waiting.remove(waiter)
        self._left(waiter.project)

    def next_project(self, avoided: Callable[[str], bool]) -> str | None:
        """The next project that is not avoided; if all are avoided, the next one.

        None if every waiter's project is held, or nobody waits.
        """
        return next(filterfalse(avoided, self._ready), next(iter(self._ready), None))

    def take(self, project: str, passed_over: Collection[str] = ()) -> Waiter:
        """Remove and return the project's first waiter whose event is not in `passed_over`.

        If all events are in `passed_over`, the first waiter.
        """
        waiter = self._lines[project].take(passed_over)
        self._ready.move_to_end(project)
        self._left(project)
        return waiter

    def hold(self, project: str) -> None:
        """Give the project no turn until it is released."""
        self._held.add(project)
        self._update(project)

    def release(self, project: str) -> None:
        """Give the project turns again."""
        self._held.discard(project)
        self._update(project)

    def _left(self, project: str) -> None:
        self._count -= 1
        if not self._lines[project].waiting:
            del self._lines[project]
        self._update(project)

    def _update(self, project: str) -> None:
        """Add the project to `_ready` or remove it. A project that is already there stays put."""
        if project in self._lines and project not in self._held:
            self._ready.setdefault(project)
        else:
            self._ready.pop(project, None)
