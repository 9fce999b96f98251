"""The pauses. While one lasts, only probes are sent.

    the closed gate    begins with three refusals in a row that changed the rate; ends when Svix
                       processes a probe
    an outage          begins with five failures in a row, of different events of two projects or
                       more; ends when Svix processes any send
    a project's pause  begins with five failures in a row of different events of one project; only
                       that project's line waits; ends when Svix processes a send of the project
    the claims' pause  begins when the ledger does not answer a claim; ends when it answers one

During a closed gate, a probe that fails turns it into an outage. During an outage, a probe that is
refused turns it into a closed gate.

Uses no clock and no event loop: the time is passed to each method. Times are seconds.
"""

import heapq
import math
from collections import OrderedDict
from collections.abc import Collection, Iterator

from relay.outcome import Outcome
from relay.pacing import tuning
from relay.pacing.pause import Pause, Uniform


class Pauses:
    """All pauses of an instance: those for all projects, and each project's own."""

    def __init__(self, uniform: Uniform) -> None:
        self._uniform = uniform
        self._svix = Pause(uniform)
        """The closed gate or an outage; `_cause` says which."""
        self._claims = Pause(uniform)
        self._own: OrderedDict[str, Pause] = OrderedDict()
        """Each project's own pause, kept from its first failure to its next processed send."""
        self._due: list[tuple[float, str]] = []
        """When each project's own pause allows a probe, as a heap; entries may be outdated."""
        self._changed: set[str] = set()
        """The projects whose hold may have changed since the last call of `changes`."""
        self._cause = Outcome.UNAVAILABLE
        """RATE_LIMITED while the gate is closed, UNAVAILABLE in an outage."""
        self._refusals = 0
        """Refusals in a row that changed the rate."""
        self._last_failed: str | None = None
        """The project of the call that failed last."""

    @property
    def is_on(self) -> bool:
        """Whether a pause for all projects is on."""
        return self._svix.is_on or self._claims.is_on

    @property
    def next_turn_at(self) -> float:
        """When the pauses for all projects allow the next turn."""
        return max(self._svix.next_turn_at, self._claims.next_turn_at)

    @property
    def next_change_at(self) -> float:
        """When a project has to be released next, because its own pause allows a probe."""
        return self._due[0][0] if self._due else math.inf

    def changes(self, at: float) -> Iterator[tuple[str, bool]]:
        """Yield each project that may have to be held or released, and whether to hold it."""
        while self._due and self._due[0][0] <= at:
            self._changed.add(heapq.heappop(self._due)[1])
        while self._changed:
            project = self._changed.pop()
            yield project, self.holds(project, at)

    def holds(self, project: str, at: float) -> bool:
        """Whether the project gets no turn now.

        It gets none while its probe is unanswered, and while its own pause allows no probe.
        """
        own = self._own.get(project)
        is_probing = any(project in pause.probes for pause in self._pauses_of(project))
        return is_probing or (own is not None and at < own.until)

    def avoids(self, project: str) -> bool:
        """Whether the next turn should go to another project.

        During a pause, the project that failed last should not be probed again. If only its events
        fail, another project's probe ends the pause.
        """
        return self._svix.is_on and project == self._last_failed

    def passed_over(self, project: str) -> Collection[str]:
        """The events that failed before or during the pause that is on: they are probed last."""
        for pause in (self._svix, self._own.get(project)):
            if pause is not None and pause.is_on:
                return pause.failed
        return ()

    def superseded(self, project: str, given_at: float) -> bool:
        """Whether a pause that forbids the call of this turn began after the turn was given.

        That is the closed gate, an outage or the project's own pause.
        """
        own = self._own.get(project)
        return self._svix.began_after(given_at) or (own is not None and own.began_after(given_at))

    def probing(self, given_at: float) -> bool:
        """Whether a turn that was given at this time is a probe of the gate or of an outage."""
        return self._svix.is_on and not self._svix.began_after(given_at)

    def give(self, project: str, at: float) -> None:
        """A turn is given. During a pause it is a probe."""
        for pause in self._pauses_of(project):
            if pause.is_on:
                pause.probes[project] = at
                self._changed.add(project)

    def over(self, project: str, given_at: float) -> None:
        """A turn is over, with or without a call. If it was a probe, another may be sent."""
        for pause in self._pauses_of(project):
            if pause.probes.get(project) == given_at:
                del pause.probes[project]
                self._changed.add(project)

    def taken(self, project: str, given_at: float) -> None:
        """Svix processed a send. Any such send ends an outage; only a probe opens the gate."""
        self._refusals = 0
        self._svix.failed.clear()
        if self._cause is Outcome.UNAVAILABLE or not self._svix.began_after(given_at):
            self._end(self._svix)
        if self._own.pop(project, None) is not None:
            self._changed.add(project)

    def refused(
        self, given_at: float, at: float, retry_after: float | None, *, fresh: bool
    ) -> None:
        """Svix refused a call. `fresh` says whether the refusal changed the rate."""
        self._refusals += fresh
        if self.probing(given_at) or (
            not self._svix.is_on and fresh and self._refusals >= tuning.REFUSALS_TO_CLOSE
        ):
            self._cause = Outcome.RATE_LIMITED
            doubled = self._svix.doubled(tuning.FIRST_PAUSE, tuning.LONGEST_GATE)
            seconds = doubled if retry_after is None else min(retry_after, tuning.LONGEST_GATE)
            self._svix.extend(at, seconds)

    def failed(self, project: str, event: str, given_at: float, at: float) -> None:
        """A call failed. If it was sent before a pause began, it does not extend that pause."""
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
        """The pause that delays the project: the outcome, when the next probe is due, and a detail.

        None if no pause does.
        """
        own = self._own.get(project)
        if self._claims.is_on:
            why = "the ledger does not answer claims"
            return Outcome.LEDGER_UNAVAILABLE, self._claims.until, why
        if self._svix.is_on:
            refuses = self._cause is Outcome.RATE_LIMITED
            why = "Svix answers all calls with 429" if refuses else "all calls to Svix fail"
            return self._cause, self._svix.until, why
        if own is not None and own.is_on:
            why = "all calls for this project fail"
            return Outcome.UNAVAILABLE, own.until, why
        return None

    def _pauses_of(self, project: str) -> list[Pause]:
        """The pauses that may delay the project's calls."""
        own = self._own.get(project)
        return [self._svix, self._claims] if own is None else [self._svix, self._claims, own]

    def _end(self, pause: Pause) -> None:
        self._changed.update(pause.probes)
        pause.end()
