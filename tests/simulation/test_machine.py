"""Random schedules by Hypothesis, with more deliveries and faults than can be enumerated."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from tests.simulation.explorer import Explorer, Run, Scenario

MANY = Scenario(("a", "a", "b", "a", "b", "a"), 8)


class RandomRun(Run):
    """A schedule whose steps Hypothesis chooses. At the end, `execute` takes the first options."""

    def _choose(self, count: int, options: object) -> int:
        return 0

    def act(self, choice: int) -> None:
        """Do one of the things that may happen next, if there are any."""
        if options := self._options():
            self._do(*options[choice % len(options)])


class Deliveries(RuleBasedStateMachine):
    """Six deliveries of two events, eight faults."""

    def __init__(self) -> None:
        super().__init__()
        self._run = RandomRun(Explorer(MANY), [])

    @rule(choice=st.integers(0, 10_000))
    def act(self, choice: int) -> None:
        """Let something happen."""
        self._run.act(choice)

    def teardown(self) -> None:
        """Finish without faults. Then the invariants must hold."""
        self._run.execute()


TestDeliveries = Deliveries.TestCase
TestDeliveries.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
