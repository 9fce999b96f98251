"""The rate: how a refusal lowers it, and how fast it climbs again. The tests use no clock."""

import pytest

from relay.pacing import tuning
from relay.pacing.rate import Rate


def limited(taken: int = 40, at: float = 10.0) -> Rate:
    """A rate that met its first refusal at this time, after `taken` events."""
    rate = Rate()
    for _ in range(taken):
        rate.taken(at - 0.1)
    assert rate.refused(given_at=at - 0.1, interval=0.0, at=at)
    return rate


def refuse(rate: Rate, at: float) -> bool:
    """Let Svix refuse a turn that was given a moment ago."""
    return rate.refused(given_at=at - 0.05, interval=rate.give(at), at=at)


def climbing(at: float = 10.0) -> Rate:
    """A rate whose search has ended at this time."""
    rate = limited(at=at - 1)
    assert refuse(rate, at)
    return rate


def test_until_a_limit_is_met_there_is_no_rate() -> None:
    rate = Rate()
    assert rate.current is None
    assert rate.give(5.0) == 0
    assert rate.next_at < 5.0


def test_the_window_grows_with_each_processed_send_up_to_its_maximum() -> None:
    rate = Rate()
    rate.taken(1.0)
    assert rate.window == tuning.FIRST_WINDOW + 1
    for _ in range(1000):
        rate.taken(1.0)
    assert rate.window == tuning.LARGEST_WINDOW


def test_the_first_refusal_sets_the_rate_to_what_was_taken_in_a_second() -> None:
    assert limited(taken=40).current == 40


@pytest.mark.parametrize(("before", "running", "level"), [(40, 5, 40), (5, 40, 40), (0, 7, 7)])
def test_the_larger_of_the_current_and_the_last_second_counts(
    before: int, running: int, level: int
) -> None:
    """A second that has just begun has few events."""
    rate = Rate()
    for _ in range(before):
        rate.taken(8.5)
    for _ in range(running):
        rate.taken(9.2)
    rate.refused(given_at=9.2, interval=0.0, at=9.3)
    assert rate.current == level


def test_events_taken_long_ago_do_not_count() -> None:
    rate = Rate()
    for _ in range(40):
        rate.taken(1.5)
    rate.refused(given_at=9.2, interval=0.0, at=9.3)
    assert rate.current == tuning.LOWEST_LEVEL


def test_after_the_first_refusal_no_turn_is_given_for_half_a_second() -> None:
    """Otherwise the next calls might be refused too, and end the search too early."""
    rate = limited(at=10.0)
    assert rate.next_at == 10.5


def test_the_search_doubles_with_two_seconds_of_use() -> None:
    rate = limited(taken=40)
    rate.use(2.0)
    assert rate.current == pytest.approx(80)


def test_unused_time_does_not_raise_the_rate() -> None:
    """Only calls that are sent can test the limit."""
    rate = climbing()
    before = rate.current
    rate.give(100.0)
    assert rate.current == before


def test_a_refusal_of_a_call_given_before_the_last_refusal_is_ignored() -> None:
    """Many calls of a burst are refused for the same reason."""
    rate = limited(at=10.0)
    before = rate.current
    assert not rate.refused(given_at=9.95, interval=1 / 40, at=10.2)
    assert rate.current == before


def test_the_search_ends_between_what_was_taken_and_what_was_tried() -> None:
    rate = limited(taken=40, at=10.0)
    rate.use(2.0)  # 80 a second by now
    for _ in range(100):
        rate.taken(11.0)
    refuse(rate, 12.0)  # 50 were taken each second
    assert rate.current == pytest.approx((50 + 80) / 2)


def test_the_search_ends_with_at_least_a_cut() -> None:
    """The refusal says that the rate is too high, however many events were taken."""
    rate = limited(taken=40, at=10.0)
    for _ in range(1000):
        rate.taken(11.0)
    refuse(rate, 12.0)
    assert rate.current == pytest.approx(0.9 * 40)


def test_each_refusal_then_cuts_a_tenth() -> None:
    rate = climbing(at=10.0)
    before = rate.current
    assert before is not None
    refuse(rate, 10.2)
    assert rate.current == pytest.approx(0.9 * before)


def test_the_cut_is_from_the_rate_when_the_refused_turn_was_given() -> None:
    """A slow Svix answers late, and meanwhile the rate has climbed."""
    rate = climbing(at=10.0)
    interval = rate.give(10.5)
    rate.use(30.0)
    rate.refused(given_at=10.5, interval=interval, at=12.0)
    assert rate.current == pytest.approx(0.9 / interval)


def test_the_climb_is_flat_at_first_and_has_doubled_after_twenty_seconds() -> None:
    rate = climbing()
    level = rate.current
    assert level is not None
    rate.use(5.0)
    assert rate.current == pytest.approx(level, rel=0.02)
    rate.use(15.0)
    assert rate.current == pytest.approx(2 * level)


def test_the_rate_never_falls_so_low_that_it_could_not_recover() -> None:
    rate = limited(taken=0)
    for number in range(50):
        refuse(rate, 11.5 + number)
    assert rate.current == tuning.LOWEST_LEVEL


def test_turns_are_spaced_and_at_most_a_tenth_of_a_second_is_made_up() -> None:
    """A late timer costs no turn, and an idle minute causes no burst."""
    rate = limited(taken=40, at=10.0)
    rate.give(100.0)
    assert rate.next_at == pytest.approx(99.9 + 1 / 40)
    for _ in range(10):
        rate.give(100.0)
    assert rate.next_at > 100.0


def test_a_turn_that_is_taken_back_leaves_its_moment_to_the_next() -> None:
    rate = limited(taken=40, at=10.0)
    rate.give(100.0)
    before = rate.next_at
    rate.take_back(rate.give(100.0))
    assert rate.next_at == pytest.approx(before)
