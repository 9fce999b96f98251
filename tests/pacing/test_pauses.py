"""Pauses: which failures and refusals begin one, which projects it affects, and what ends it."""

import pytest

from relay.outcome import Outcome
from relay.pacing.pauses import Pauses


def new_pauses() -> Pauses:
    """Pauses without jitter."""
    return Pauses(lambda low, _: low)


def fail(pauses: Pauses, *events: str, at: float = 10.0) -> None:
    """Let a call fail for each event. An event's name is its project, a dash and a number."""
    for event in events:
        pauses.failed(event.split("-")[0], event, at, at)


def refuse(pauses: Pauses, times: int, at: float = 10.0, retry_after: float | None = None) -> None:
    """Let Svix refuse calls at the same moment. Each refusal counts as changing the rate."""
    for _ in range(times):
        pauses.refused(at, at, retry_after, fresh=True)


def held(pauses: Pauses, project: str, at: float) -> bool:
    """Whether the project gets no turn at this time."""
    return pauses.holds(project, at)


def in_outage() -> Pauses:
    """Pauses in an outage that began at 10.0."""
    pauses = new_pauses()
    fail(pauses, "a-1", "a-2", "a-3", "a-4", "b-1")
    assert pauses.is_on
    return pauses


@pytest.mark.parametrize(
    ("events", "is_outage"),
    [
        (["a-1", "a-2", "b-1", "b-2"], False),  # only four
        (["a-1", "a-2", "b-1", "b-2", "c-1"], True),
        (["a-1", "b-1", "a-1", "b-1", "a-1", "b-1"], False),  # only two events, again and again
        (
            ["a-1", "a-2", "a-3", "a-4", "a-5", "a-6"],
            False,
        ),  # one project's events: only that project pauses
        (["a-1", "a-2", "a-3", "a-4", "a-5", "b-1"], True),
    ],
)
def test_an_outage_is_five_different_events_of_two_projects(
    *, events: list[str], is_outage: bool
) -> None:
    pauses = new_pauses()
    fail(pauses, *events)
    assert pauses.is_on is is_outage


def test_failures_with_a_processed_send_between_them_are_not_in_a_row() -> None:
    pauses = new_pauses()
    fail(pauses, "a-1", "a-2", "b-1", "b-2")
    pauses.taken("c", 10.0)
    fail(pauses, "c-1")
    assert not pauses.is_on


def test_five_failures_of_one_project_hold_only_its_line() -> None:
    """One customer's poison is not an outage."""
    pauses = new_pauses()
    fail(pauses, "a-1", "a-2", "a-3", "a-4", "a-5")
    assert held(pauses, "a", 10.4)
    assert not held(pauses, "a", 10.5)
    assert not held(pauses, "b", 10.0)
    assert not pauses.is_on


def test_sends_of_other_projects_do_not_hide_a_projects_failures() -> None:
    pauses = new_pauses()
    for number in range(5):
        fail(pauses, f"a-{number}")
        pauses.taken("b", 10.0)
    assert held(pauses, "a", 10.4)


def test_a_projects_pause_doubles_with_each_probe_that_fails_and_ends_when_one_succeeds() -> None:
    pauses = new_pauses()
    fail(pauses, "a-1", "a-2", "a-3", "a-4", "a-5", at=10.0)
    at, lengths = 10.5, []
    list(pauses.changes(at))
    for number in range(6):
        pauses.give("a", at)
        assert held(pauses, "a", at + 100)  # until the probe is answered
        fail(pauses, f"a-{number}", at=at)
        pauses.over("a", at)
        before, at = at, pauses.next_change_at
        list(pauses.changes(at))
        lengths.append(at - before)
        assert not held(pauses, "a", at)
    assert lengths == [1, 2, 4, 5, 5, 5]
    pauses.give("a", at)
    pauses.taken("a", at)
    assert not held(pauses, "a", at)
    assert not pauses.superseded("a", at - 100)


def test_a_projects_line_is_released_when_its_probe_may_go() -> None:
    pauses = new_pauses()
    fail(pauses, "a-1", "a-2", "a-3", "a-4", "a-5")
    assert dict(pauses.changes(10.0)) == {"a": True}
    assert pauses.next_change_at == 10.5
    assert dict(pauses.changes(10.5)) == {"a": False}


def test_in_an_outage_one_probe_goes_after_half_a_second() -> None:
    pauses = in_outage()
    assert pauses.next_turn_at == 10.5
    pauses.give("a", 10.5)
    assert pauses.next_turn_at > 10.5
    assert held(pauses, "a", 10.5)


def test_an_outages_pauses_double_up_to_five_seconds() -> None:
    """The end of an outage is noticed after five seconds at the latest."""
    pauses = in_outage()
    lengths = []
    for _ in range(6):
        at = pauses.next_turn_at
        pauses.give("a", at)
        fail(pauses, "a-1", at=at)
        pauses.over("a", at)
        lengths.append(pauses.next_turn_at - at)
    assert lengths == [1, 2, 4, 5, 5, 5]


def test_failures_of_calls_sent_before_the_outage_are_ignored() -> None:
    """Only probes, which are sent during the outage, show whether it lasts."""
    pauses = in_outage()
    for number in range(20):
        pauses.failed("c", f"c-{number}", given_at=9.0, at=11.0)
    assert pauses.next_turn_at == 10.5


def test_any_processed_send_ends_an_outage() -> None:
    """Svix works again, even if the call was sent before the outage."""
    pauses = in_outage()
    pauses.taken("c", given_at=9.0)
    assert not pauses.is_on


def test_after_a_probe_that_hung_the_next_may_go_at_once() -> None:
    pauses = in_outage()
    pauses.give("a", 10.5)
    pauses.failed("a", "a-1", given_at=10.5, at=20.5)
    pauses.over("a", 10.5)
    assert pauses.next_turn_at <= 20.5


def test_a_probe_unanswered_for_a_second_holds_back_only_its_own_project() -> None:
    """One customer's hanging event must not prolong the outage for the others."""
    pauses = in_outage()
    pauses.give("a", 10.5)
    assert pauses.next_turn_at == 11.5
    assert held(pauses, "a", 15.0)
    assert not held(pauses, "b", 15.0)


def test_the_end_of_an_outage_frees_a_project_whose_probe_still_hangs() -> None:
    pauses = in_outage()
    pauses.give("a", 10.5)
    list(pauses.changes(10.5))
    pauses.give("b", 11.5)
    pauses.taken("b", 11.5)
    assert dict(pauses.changes(11.6)) == {"a": False, "b": False}


def test_a_probe_goes_to_another_project_than_the_last_failure() -> None:
    pauses = in_outage()
    assert pauses.avoids("b")
    assert not pauses.avoids("a")


def test_a_probe_uses_an_event_that_has_not_failed() -> None:
    pauses = in_outage()
    assert set(pauses.passed_over("a")) == {"a-1", "a-2", "a-3", "a-4", "b-1"}
    pauses.taken("a", 10.0)
    assert not pauses.passed_over("a")


def test_a_project_in_its_own_pause_probes_with_events_that_have_not_failed() -> None:
    pauses = new_pauses()
    fail(pauses, "a-1", "a-2", "a-3", "a-4", "a-5")
    assert set(pauses.passed_over("a")) == {"a-1", "a-2", "a-3", "a-4", "a-5"}
    assert not pauses.passed_over("b")


def test_three_fresh_refusals_in_a_row_close_the_gate() -> None:
    """Two in a row happen by chance."""
    pauses = new_pauses()
    refuse(pauses, 2)
    assert not pauses.is_on
    pauses.taken("a", 10.0)
    refuse(pauses, 2)
    assert not pauses.is_on
    refuse(pauses, 1)
    assert pauses.next_turn_at == 10.5


def test_refusals_that_did_not_change_the_rate_do_not_close_the_gate() -> None:
    pauses = new_pauses()
    for _ in range(50):
        pauses.refused(9.0, 10.0, None, fresh=False)
    assert not pauses.is_on


@pytest.mark.parametrize(
    ("retry_after", "pause"), [(None, 0.5), (0.0, 0.0), (7.0, 7.0), (86_400.0, 60.0)]
)
def test_the_gate_stays_closed_for_as_long_as_retry_after_says(
    retry_after: float | None, pause: float
) -> None:
    """Without Retry-After it is half a second. It is never more than a minute."""
    pauses = new_pauses()
    refuse(pauses, 3, retry_after=retry_after)
    assert pauses.next_turn_at == 10.0 + pause


def test_a_refused_probe_closes_the_gate_for_longer_each_time() -> None:
    pauses = new_pauses()
    refuse(pauses, 3)
    lengths = []
    for _ in range(9):
        at = pauses.next_turn_at
        pauses.give("a", at)
        assert pauses.probing(at)
        pauses.refused(at, at, None, fresh=False)
        pauses.over("a", at)
        lengths.append(pauses.next_turn_at - at)
    assert lengths == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_only_a_probe_opens_the_gate() -> None:
    """The success of an earlier call says nothing, because Svix refused later calls."""
    pauses = new_pauses()
    refuse(pauses, 3)
    pauses.taken("a", given_at=9.0)
    assert pauses.is_on
    pauses.give("a", 10.5)
    pauses.taken("a", 10.5)
    assert not pauses.is_on


def test_failed_claims_pause_all_turns_until_one_is_answered() -> None:
    pauses = new_pauses()
    lengths = []
    at = 10.0
    for _ in range(7):
        pauses.give("a", at)
        pauses.claim_failed(at, at)
        pauses.over("a", at)
        lengths.append(pauses.next_turn_at - at)
        at = pauses.next_turn_at
    assert lengths == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 5, 5])
    pauses.claimed()
    assert not pauses.is_on


def test_failed_claims_from_before_the_pause_do_not_prolong_it() -> None:
    pauses = new_pauses()
    for _ in range(20):
        pauses.claim_failed(given_at=5.0, at=10.0)
    assert pauses.next_turn_at == pytest.approx(10.2)


def test_a_turn_is_superseded_by_a_pause_of_its_project() -> None:
    pauses = new_pauses()
    fail(pauses, "a-1", "a-2", "a-3", "a-4", "a-5")
    assert pauses.superseded("a", 9.0)
    assert not pauses.superseded("b", 9.0)
    assert not pauses.superseded("a", 10.5)  # its probe
    fail(pauses, "b-1")
    assert pauses.superseded("b", 9.0)


def test_the_reason_for_no_turn_has_the_matching_outcome() -> None:
    pauses = new_pauses()
    assert pauses.reason("a") is None
    fail(pauses, "a-1", "a-2", "a-3", "a-4", "a-5")
    reasons = [pauses.reason("a")]
    assert pauses.reason("b") is None
    refuse(pauses, 3)
    reasons.append(pauses.reason("b"))
    pauses.claim_failed(10.0, 10.0)
    reasons.append(pauses.reason("b"))
    assert [reason and reason[0] for reason in reasons] == [
        Outcome.UNAVAILABLE,
        Outcome.RATE_LIMITED,
        Outcome.LEDGER_UNAVAILABLE,
    ]


def test_a_project_that_failed_long_ago_is_forgotten() -> None:
    """The memory must not grow with the number of customers."""
    pauses = new_pauses()
    fail(pauses, "a-1", "a-2", "a-3", "a-4", "a-5")
    list(pauses.changes(10.0))
    for number in range(1000):
        pauses.taken("healthy", 10.0)
        fail(pauses, f"p{number}-1")
    assert dict(pauses.changes(10.0)) == {"a": False}
    assert pauses.reason("a") is None
