"""One turn, as a request uses it."""

from collections.abc import Callable

from relay.outcome import Answer, Call, Verdict
from relay.pacing.traffic import GivenTurn, Traffic


class Turn:
    """The right to make one call to Svix.

    If it ends without a call, the next in line gets it, unless the ledger failed. `on_change` is
    called whenever another request may get a turn because of this one.
    """

    def __init__(
        self,
        given: GivenTurn,
        traffic: Traffic,
        clock: Callable[[], float],
        on_change: Callable[[], None],
    ) -> None:
        self._given = given
        self._traffic = traffic
        self._clock = clock
        self._on_change = on_change
        self._is_called = self._is_over = False

    @property
    def superseded(self) -> bool:
        """Whether a pause that forbids the call has begun since the turn was given.

        That is the closed gate, an outage or the project's own pause.
        """
        return self._traffic.pauses.superseded(self._given.project, self._given.at)

    def begin(self, *, claimed: bool = True) -> None:
        """The call to Svix begins now.

        `claimed` says whether the ledger answered a claim for this turn.
        """
        self._is_called = True
        self._traffic.begin(self._given, claimed=claimed)
        self._on_change()

    def report(self, answer: Answer) -> None:
        """Svix answered the call.

        If `leave` ends the turn after `begin` without a report, the call counts as unavailable.
        """
        self._is_over = True
        self._traffic.answered(self._given, answer, self._clock())
        self._on_change()

    def ledger_failed(self) -> None:
        """The ledger did not answer the claim. The turn is used up, and claims pause."""
        self._is_over = True
        self._traffic.claim_failed(self._given, self._clock())
        self._on_change()

    def leave(self, *, claimed: bool) -> None:
        """End the turn if it is not over. `claimed` says whether the ledger answered the claim."""
        if self._is_over:
            return
        if self._is_called:
            self.report(Answer(Call.SEND, Verdict.UNAVAILABLE))
            return
        self._is_over = True
        self._traffic.unused(self._given, claimed=claimed)
        self._on_change()
