"""The open turns, and what each answer says about Svix.

A turn is open until Svix has answered its call, or until the turn ends without a call. Until Svix
refuses its first call, the window bounds the number of open turns (`rate.py`). There are two
exceptions. The turns that a project has beyond its share do not count against other projects. And
during a pause for all projects, the window does not apply.

Uses no clock and no event loop: the time is passed to each method. Times are seconds.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from relay.outcome import Answer, Outcome, Verdict
from relay.pacing import tuning
from relay.pacing.pauses import Pauses
from relay.pacing.rate import Rate


@dataclass(frozen=True, slots=True)
class GivenTurn:
    """One turn, as it was given."""

    project: str
    event: str
    at: float
    interval: float
    """Seconds to the next turn, at the rate that held when this turn was given. 0 until the first
    refusal."""
    waited: bool
    """Whether a request had to wait for the turn."""


class Traffic:
    """Decides when a turn may be given, from the open turns, the rate and the pauses."""

    def __init__(self, uniform: Callable[[float, float], float]) -> None:
        self.rate = Rate()
        self.pauses = Pauses(uniform)
        self.in_flight = 0
        """The number of open turns."""
        self.taken = self.refused = self.failed = 0
        """Since the start: processed sends, refusals, and failed calls."""
        self._failing = 0.0
        """The share of the last calls that failed."""
        self._of_project: Counter[str] = Counter()
        """The number of open turns of each project."""
        self._uncalled = 0
        """The number of open turns whose call has not begun."""
        self._last_taken: tuple[str, float] = ("", -math.inf)
        """The project of the last processed send, and the time of its answer."""
        self._last_taken_of_another: tuple[str, float] = ("", -math.inf)
        """The project and the time of the last processed send of any other project."""

    def next_turn_at(self, project: str) -> float:
        """When the project may get a turn, if it is next.

        Infinite while too many turns are open. That changes only when another turn ends, or its
        call begins.
        """
        rate = self.rate.current
        if rate is None:
            is_full = not self._has_room(project) and not self.pauses.is_on
        else:
            is_full = self._uncalled >= max(1.0, rate * tuning.UNCALLED)
        return math.inf if is_full else max(self.rate.next_at, self.pauses.next_turn_at)

    def avoids(self, project: str) -> bool:
        """Whether the next turn should go to another project, if one waits."""
        fills_share = self.rate.current is None and self._has_share(project)
        return fills_share or self.pauses.avoids(project)

    def _has_share(self, project: str) -> bool:
        """Whether the project's open turns fill its share of the window, or more."""
        return self._of_project[project] >= self.rate.window * tuning.SHARE

    def _has_room(self, project: str) -> bool:
        """Whether the window has room for a call of the project.

        A project may exceed its share while no other project waits. Its calls beyond the share are
        not counted against the other projects.
        """
        if self._has_share(project) or self.in_flight < self.rate.window:
            return self.in_flight < self.rate.window
        excess = max(self._of_project.values()) - self.rate.window * tuning.SHARE
        return self.in_flight - max(0.0, excess) < self.rate.window

    def serves_others_since(self, project: str, since: float) -> bool:
        """Whether few of the last calls failed, and another project's send was processed since."""
        of_another = self._last_taken[0] != project
        last = self._last_taken if of_another else self._last_taken_of_another
        return last[1] >= since and self._failing < tuning.MANY_FAIL

    def give(self, project: str, event: str, at: float, *, waited: bool) -> GivenTurn:
        """Give a turn. `waited` says whether a request had to wait for it."""
        self.pauses.give(project, at)
        self.in_flight += 1
        self._of_project[project] += 1
        self._uncalled += 1
        return GivenTurn(project, event, at, self.rate.give(at), waited)

    def begin(self, turn: GivenTurn, *, claimed: bool = True) -> None:
        """The turn's call begins. `claimed` says whether the ledger answered a claim for it."""
        self._uncalled -= 1
        if claimed:
            self.pauses.claimed()
        if turn.waited:
            self.rate.use(turn.interval)

    def unused(self, turn: GivenTurn, *, claimed: bool) -> None:
        """The turn ended without a call. `claimed` says whether the ledger answered the claim."""
        self._uncalled -= 1
        self.rate.take_back(turn.interval)
        if claimed:
            self.pauses.claimed()
        self._over(turn)

    def claim_failed(self, turn: GivenTurn, at: float) -> None:
        """The ledger did not answer the turn's claim. The turn is used up."""
        self._uncalled -= 1
        self.pauses.claim_failed(turn.at, at)
        self._over(turn)

    def answered(self, turn: GivenTurn, answer: Answer, at: float) -> None:
        """Svix answered the turn's call."""
        if answer.taken:
            self.taken += 1
            self._failing -= self._failing / tuning.LAST_CALLS
            if turn.project != self._last_taken[0]:
                self._last_taken_of_another = self._last_taken
            self._last_taken = (turn.project, at)
            self.rate.taken(at)
            self.pauses.taken(turn.project, turn.at)
        elif answer.failed:
            self.failed += 1
            self._failing += (1 - self._failing) / tuning.LAST_CALLS
            self.pauses.failed(turn.project, turn.event, turn.at, at)
            if self.pauses.is_on:
                self.rate.restart_window()
        elif answer.verdict is Verdict.RATE_LIMITED:
            self.refused += 1
            fresh = not self.pauses.probing(turn.at)
            fresh = fresh and self.rate.refused(turn.at, turn.interval, at)
            self.pauses.refused(turn.at, at, answer.retry_after, fresh=fresh)
        self._over(turn)

    def reason(self, project: str) -> tuple[Outcome, float, str]:
        """Why the project has no turn now: the outcome, when it may get one, and a detail."""
        if (reason := self.pauses.reason(project)) is not None:
            return reason
        if self.rate.current is not None:
            why = "Svix's rate limit, or a slow ledger, left no turn"
            return Outcome.RATE_LIMITED, self.rate.next_at, why
        why = "too many turns are open: Svix or the ledger is slow to answer"
        return Outcome.UNAVAILABLE, self.rate.next_at, why

    def _over(self, turn: GivenTurn) -> None:
        self.in_flight -= 1
        self._of_project[turn.project] -= 1
        if not self._of_project[turn.project]:
            del self._of_project[turn.project]
        self.pauses.over(turn.project, turn.at)
