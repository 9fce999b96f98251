"""One turn, as those see it who were given it."""

from collections.abc import Callable

from relay.outcome import Answer, Call, Verdict
from relay.pacing.traffic import Given, Traffic


class Turn:
    """Leave to call Svix once. Left without a call, it goes to the next in line."""

    def __init__(
        self,
        given: Given,
        traffic: Traffic,
        clock: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        self._given = given
        self._traffic = traffic
        self._clock = clock
        self._changed = changed
        """Called whenever others may have turns because of this one."""
        self._is_called = self._is_over = False

    @property
    def given_at(self) -> float:
        """When it was given, on the pacer's clock."""
        return self._given.at

    @property
    def superseded(self) -> bool:
        """Whether a pause that concerns this turn has begun since it was given."""
        return self._traffic.pauses.superseded(self._given.project, self._given.at)

    def begin(self) -> None:
        """The call to Svix begins now: the ledger has answered the claim."""
        self._is_called = True
        self._traffic.begin(self._given)
        self._changed()

    def report(self, answer: Answer) -> None:
        """Svix answered. A call that is left without a report counts as unavailable."""
        self._is_over = True
        self._traffic.answered(self._given, answer, self._clock())
        self._changed()

    def ledger_failed(self) -> None:
        """The ledger did not answer the claim: the turn is spent, and claims pause."""
        self._is_over = True
        self._traffic.claim_failed(self._given, self._clock())
        self._changed()

    def leave(self, *, claimed: bool) -> None:
        """End it, if nothing has yet; `claimed`: the ledger has answered, whatever it said."""
        if self._is_over:
            return
        if self._is_called:
            self.report(Answer(Call.SEND, Verdict.UNAVAILABLE))
            return
        self._is_over = True
        self._traffic.unused(self._given, claimed=claimed)
        self._changed()
