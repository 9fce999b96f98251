"""The open turns: how many there may be, and what the answers to their calls change."""

import math

import pytest

from relay.outcome import Answer, Call, Outcome, Verdict
from relay.pacing import tuning
from relay.pacing.traffic import GivenTurn, Traffic

TAKEN = Answer(Call.SEND, Verdict.ACCEPTED, 202)
FOUND = Answer(Call.ASK, Verdict.ACCEPTED, 200)
CONFLICT = Answer(Call.SEND, Verdict.CONFLICT, 409)
REJECTED = Answer(Call.SEND, Verdict.REJECTED, 422)
UNKNOWN = Answer(Call.SEND, Verdict.UNAVAILABLE, 404, code="not_found")
FAILED = Answer(Call.SEND, Verdict.UNAVAILABLE, 500)
MISCONFIGURED = Answer(Call.ASK, Verdict.MISCONFIGURED, 401)
REFUSED = Answer(Call.SEND, Verdict.RATE_LIMITED, 429)


def new_traffic() -> Traffic:
    """Traffic without jitter."""
    return Traffic(lambda low, _: low)


def give(traffic: Traffic, count: int, project: str = "acme", at: float = 10.0) -> list[GivenTurn]:
    """Give `count` turns, each for an event of its own."""
    events = [f"{project} {number} {at}" for number in range(count)]
    return [traffic.give(project, event, at, waited=True) for event in events]


def answer(traffic: Traffic, answered: Answer, project: str = "acme", at: float = 10.0) -> None:
    """Make a call that is answered at once."""
    (turn,) = give(traffic, 1, project, at)
    traffic.begin(turn)
    traffic.answered(turn, answered, at)


def has_room(traffic: Traffic, project: str) -> bool:
    """Whether the project may have a turn now."""
    return traffic.next_turn_at(project) < math.inf


def test_a_project_that_is_alone_fills_the_window() -> None:
    traffic = new_traffic()
    give(traffic, tuning.FIRST_WINDOW - 1)
    assert has_room(traffic, "acme")
    give(traffic, 1)
    assert not has_room(traffic, "acme")


def test_calls_beyond_a_projects_share_take_no_room_from_the_others() -> None:
    """One customer has thirty hanging calls, and the others still have their half."""
    traffic = new_traffic()
    give(traffic, tuning.FIRST_WINDOW, "hanging")
    half = tuning.FIRST_WINDOW // 2
    give(traffic, half - 1, "other")
    assert has_room(traffic, "other")
    give(traffic, 1, "other")
    assert not has_room(traffic, "other")
    assert not has_room(traffic, "third")


def test_a_project_with_its_share_lets_others_go_first() -> None:
    traffic = new_traffic()
    give(traffic, tuning.FIRST_WINDOW // 2, "hanging")
    assert traffic.avoids("hanging")
    assert not traffic.avoids("other")


def test_once_a_limit_is_known_turns_without_a_call_are_bounded() -> None:
    """The bound is a quarter of a second's turns, and at least one."""
    traffic = new_traffic()
    answer(traffic, REFUSED)  # the level is the lowest
    (turn,) = give(traffic, 1, at=20.0)
    assert not has_room(traffic, "acme")
    traffic.begin(turn)
    assert has_room(traffic, "acme")


@pytest.mark.parametrize("claimed", [True, False])
def test_only_a_claim_that_was_answered_ends_the_claims_pause(*, claimed: bool) -> None:
    """A reconciliation calls Svix without a claim, which says nothing about the ledger."""
    traffic = new_traffic()
    (failed,) = give(traffic, 1)
    traffic.claim_failed(failed, 10.0)
    (probe,) = give(traffic, 1, "other", at=11.0)
    traffic.begin(probe, claimed=claimed)
    assert traffic.pauses.is_on is not claimed


@pytest.mark.parametrize("taken", [TAKEN, CONFLICT, REJECTED, UNKNOWN])
def test_every_answer_that_shows_svix_working_ends_an_outage(taken: Answer) -> None:
    """It does so even if Svix did not accept the event."""
    traffic = new_traffic()
    for project in "aabbc":
        answer(traffic, FAILED, project)
        answer(traffic, FAILED, project, at=10.1)
    assert traffic.pauses.is_on
    answer(traffic, taken, "d", at=11.0)
    assert not traffic.pauses.is_on


@pytest.mark.parametrize("failed", [FAILED, MISCONFIGURED])
def test_five_failures_begin_an_outage(failed: Answer) -> None:
    traffic = new_traffic()
    for number in range(5):
        answer(traffic, failed, f"project {number}")
    assert traffic.pauses.is_on
    answer(traffic, FOUND, "d", at=11.0)  # a found message does not show that sending works
    assert traffic.pauses.is_on


def test_after_an_outage_the_window_is_small_again() -> None:
    """A Svix that has just recovered must not get all waiting calls at once."""
    traffic = new_traffic()
    for _ in range(100):
        answer(traffic, TAKEN)
    assert traffic.rate.window > 100
    for number in range(5):
        answer(traffic, FAILED, f"project {number}")
    assert traffic.rate.window == tuning.FIRST_WINDOW


def test_the_refusal_of_a_probe_does_not_lower_the_rate_again() -> None:
    traffic = new_traffic()
    for second in range(3):
        answer(traffic, REFUSED, at=10.0 + second)
    assert traffic.pauses.is_on
    before = traffic.rate.current
    answer(traffic, REFUSED, at=20.0)
    assert before is not None
    assert traffic.rate.current is not None
    assert traffic.rate.current >= before
    assert traffic.pauses.next_turn_at == 21.0


def test_the_reason_is_the_limit_if_one_is_known() -> None:
    traffic = new_traffic()
    assert traffic.reason("acme")[0] is Outcome.UNAVAILABLE
    answer(traffic, REFUSED)
    assert traffic.reason("acme")[0] is Outcome.RATE_LIMITED


def test_svix_does_not_serve_others_while_many_calls_fail() -> None:
    """Svix is the cause then, and not the event that fails again and again."""
    traffic = new_traffic()
    for number in range(100):
        for result in (TAKEN, FAILED):
            answer(traffic, result, f"project {number}", at=float(number))
    assert not traffic.serves_others_since("acme", 0.0)
    for number in range(100, 200):
        answer(traffic, TAKEN, f"project {number}", at=float(number))
    assert traffic.serves_others_since("acme", 0.0)


def test_a_projects_own_sends_do_not_hide_those_of_other_projects() -> None:
    traffic = new_traffic()
    assert not traffic.serves_others_since("a", 0.0)
    answer(traffic, TAKEN, "b", at=1.0)
    answer(traffic, TAKEN, "a", at=2.0)
    answer(traffic, TAKEN, "a", at=3.0)
    assert traffic.serves_others_since("a", 1.0)
    assert not traffic.serves_others_since("a", 1.5)
    assert traffic.serves_others_since("b", 3.0)
