"""When nothing goes to Svix but one probe at a time: after refusals, in outages, without a ledger.

Pure: knows no clock and no loop; every method is told the time. Times are float seconds.

    the gate           three fresh refusals in a row close it
    an outage          five different events failed in a row, of two projects at least
    a project's pause  five different events of one project failed in a row: only its line waits
    the claims' pause  the ledger did not answer a claim
"""

import heapq
import math
from collections import OrderedDict
from collections.abc import Collection, Iterator

from relay.outcome import Outcome
from relay.pacing import tuning
from relay.pacing.pause import Pause, Uniform


class Pauses:
    """All pauses of an instance: those that concern everybody, and those of single projects."""

    def __init__(self, uniform: Uniform) -> None:
        self._uniform = uniform
        self._svix = Pause(uniform)
        self._claims = Pause(uniform)
        self._own: OrderedDict[str, Pause] = OrderedDict()
        """Each project's own, from its first failure to its next event taken."""
        self._due: list[tuple[float, str]] = []
        """When which project's own pause allows a probe; entries may be outdated."""
        self._changed: set[str] = set()
        """Projects that may have to be held or released since somebody last asked."""
        self._cause = Outcome.UNAVAILABLE
        """Why Svix is not called: it failed, or it refused."""
        self._refusals = 0
        """Fresh refusals in a row."""
        self._last_failed: str | None = None
        """The project of the call that failed last."""

    @property
    def is_on(self) -> bool:
        """Whether nobody is served but probes."""
        return self._svix.is_on or self._claims.is_on

    @property
    def next_turn_at(self) -> float:
        """When somebody may have a turn, as far as the pauses of all are concerned."""
        return max(self._svix.next_turn_at, self._claims.next_turn_at)

    @property
    def next_change_at(self) -> float:
        """When a project is to be released because its own pause allows a probe."""
        return self._due[0][0] if self._due else math.inf

    def changes(self, at: float) -> Iterator[tuple[str, bool]]:
        """The projects for which something may have changed, and whether each is to be held."""
        while self._due and self._due[0][0] <= at:
            self._changed.add(heapq.heappop(self._due)[1])
        while self._changed:
            project = self._changed.pop()
            yield project, self.holds(project, at)

    def holds(self, project: str, at: float) -> bool:
        """Whether the project has no turn now: its probe is under way, or its own pause is on."""
        own = self._own.get(project)
        is_probing = any(project in pause.probes for pause in self._concerning(project))
        return is_probing or (own is not None and at < own.until)

    def avoids(self, project: str) -> bool:
        """Whether another project should be the next: a probe should not fail for one customer."""
        return self._svix.is_on and project == self._last_failed

    def passed_over(self, project: str) -> Collection[str]:
        """The events that should not be the project's next: those that failed in its pause."""
        for pause in (self._svix, self._own.get(project)):
            if pause is not None and pause.is_on:
                return pause.failed
        return ()

    def superseded(self, project: str, given_at: float) -> bool:
        """Whether a pause of calls has begun since this turn was given."""
        own = self._own.get(project)
        return self._svix.began_after(given_at) or (own is not None and own.began_after(given_at))

    def probing(self, given_at: float) -> bool:
        """Whether a turn of this time is a probe of all calls to Svix."""
        return self._svix.is_on and not self._svix.began_after(given_at)

    def give(self, project: str, at: float) -> None:
        """A turn is given: in a pause it is a probe."""
        for pause in self._concerning(project):
            if pause.is_on:
                pause.probes[project] = at
                self._changed.add(project)

    def over(self, project: str, given_at: float) -> None:
        """A turn has ended, however: if it was a probe, another may go."""
        for pause in self._concerning(project):
            if pause.probes.get(project) == given_at:
                del pause.probes[project]
                self._changed.add(project)

    def taken(self, project: str, given_at: float) -> None:
        """Svix took an event. That ends an outage always, and a closed gate if it was the probe."""
        self._refusals = 0
        self._svix.failed.clear()
        if self._cause is Outcome.UNAVAILABLE or not self._svix.began_after(given_at):
            self._end(self._svix)
        if self._own.pop(project, None) is not None:
            self._changed.add(project)

    def refused(
        self, given_at: float, at: float, retry_after: float | None, *, fresh: bool
    ) -> None:
        """Svix refused a call; `fresh`: it taught the rate something."""
        self._refusals += fresh
        if self.probing(given_at) or (
            not self._svix.is_on and fresh and self._refusals >= tuning.REFUSALS_TO_CLOSE
        ):
            self._cause = Outcome.RATE_LIMITED
            doubled = self._svix.doubled(tuning.FIRST_PAUSE, tuning.LONGEST_GATE)
            seconds = doubled if retry_after is None else min(retry_after, tuning.LONGEST_GATE)
            self._svix.wait(at, seconds)

    def failed(self, project: str, event: str, given_at: float, at: float) -> None:
        """A call failed. Those sent before the pause that is on say nothing about it."""
        self._last_failed = project
        if self._svix.began_after(given_at):
            return
        failed = self._svix.failed
        failed[event] = project
        of_several = any(other != project for other in failed.values())
        if self._svix.is_on or (len(failed) >= tuning.FAILURES_TO_PAUSE and of_several):
            self._cause = Outcome.UNAVAILABLE
            self._svix.back_off(given_at, at)
            return
        own = self._own.setdefault(project, Pause(self._uniform))
        self._own.move_to_end(project)
        if own.began_after(given_at):
            return
        own.failed[event] = project
        if own.is_on or len(own.failed) >= tuning.FAILURES_TO_PAUSE:
            own.back_off(given_at, at)
            heapq.heappush(self._due, (own.until, project))
            self._changed.add(project)
        if len(self._own) > tuning.PROJECTS_REMEMBERED:
            self._changed.add(self._own.popitem(last=False)[0])

    def claimed(self) -> None:
        """The ledger answered a claim."""
        self._end(self._claims)

    def claim_failed(self, given_at: float, at: float) -> None:
        """The ledger did not answer a claim."""
        if not self._claims.began_after(given_at):
            self._claims.back_off(given_at, at, tuning.FIRST_CLAIMS_PAUSE)

    def reason(self, project: str) -> tuple[Outcome, float, str] | None:
        """Why the project has no turn, until when, and in words; None: no pause is on for it."""
        own = self._own.get(project)
        if self._claims.is_on:
            why = "the ledger does not answer claims"
            return Outcome.LEDGER_UNAVAILABLE, self._claims.until, why
        if self._svix.is_on:
            does = "refuses" if self._cause is Outcome.RATE_LIMITED else "fails"
            return self._cause, self._svix.until, f"Svix {does} all calls"
        if own is not None and own.is_on:
            why = "Svix fails all calls for this project"
            return Outcome.UNAVAILABLE, own.until, why
        return None

    def _concerning(self, project: str) -> list[Pause]:
        own = self._own.get(project)
        return [self._svix, self._claims] if own is None else [self._svix, self._claims, own]

    def _end(self, pause: Pause) -> None:
        self._changed.update(pause.probes)
        pause.end()
