"""Which waiter is next: by arrival within a project, in turns between projects."""

import itertools

from relay.pacing import Waiter
from relay.pacing.lines import Lines

_numbers = itertools.count()


def waiter(project: str, arrived_at: float = 0.0, event: str | None = None) -> Waiter:
    """A waiter of this project."""
    return Waiter(project, event or f"{project}-{next(_numbers)}", arrived_at, last_turn=100.0)


def avoid_none(project: str) -> bool:
    """Avoid no project."""
    return False


def take(lines: Lines) -> Waiter:
    """Take the next waiter out of the lines."""
    project = lines.next_project(avoid_none)
    assert project is not None
    return lines.take(project)


def joined(*waiters: Waiter) -> Lines:
    """Lines with these waiters, which joined in this order."""
    lines = Lines()
    for each in waiters:
        lines.join(each)
    return lines


def test_within_a_project_the_order_is_that_of_arrival() -> None:
    late, early, middle = (waiter("a", at) for at in (3.0, 1.0, 2.0))
    lines = joined(late, early, middle)
    assert [take(lines) for _ in range(3)] == [early, middle, late]
    assert lines.next_project(avoid_none) is None


def test_a_waiter_that_comes_back_gets_its_old_place() -> None:
    """It does so even among waiters that arrived at the same moment."""
    first, second, third = (waiter("a") for _ in range(3))
    lines = joined(first, second, third)
    assert take(lines) is first
    lines.join(first)
    assert take(lines) is first


def test_turns_go_round_the_projects() -> None:
    """A flood takes one project's share of the turns, and no more."""
    flood = [waiter("flood", float(number)) for number in range(100)]
    quiet = waiter("quiet", 1000.0)
    lines = joined(*flood, quiet)
    assert {take(lines), take(lines)} == {flood[0], quiet}
    assert take(lines) is flood[1]


def test_a_project_that_comes_back_goes_behind_those_that_wait() -> None:
    """Otherwise a project that always has just one event would get every second turn."""
    lines = joined(waiter("a"), waiter("b"), waiter("c"))
    assert take(lines).project == "a"
    lines.join(waiter("a"))
    assert [take(lines).project for _ in range(3)] == ["b", "c", "a"]


def test_a_waiter_that_leaves_gets_no_turn() -> None:
    """A project without waiters gets none either."""
    first, second, other = waiter("a"), waiter("a"), waiter("b")
    lines = joined(first, second, other)
    lines.leave(first)
    assert len(lines) == 2
    assert take(lines) is second
    lines.leave(other)
    assert lines.next_project(avoid_none) is None
    assert len(lines) == 0


def test_a_project_that_is_held_waits_and_the_others_go_on() -> None:
    held, other = waiter("a"), waiter("b")
    lines = joined(held, other)
    lines.hold("a")
    assert take(lines) is other
    assert lines.next_project(avoid_none) is None
    assert len(lines) == 1
    lines.release("a")
    assert take(lines) is held


def test_a_project_can_be_held_before_it_has_waiters() -> None:
    lines = Lines()
    lines.hold("a")
    lines.join(waiter("a"))
    assert lines.next_project(avoid_none) is None


def test_an_avoided_project_is_next_only_if_no_other_waits() -> None:
    lines = joined(waiter("a"), waiter("b"))
    assert lines.next_project(lambda project: project == "a") == "b"
    take_b = lines.take("b")
    assert take_b.project == "b"
    assert lines.next_project(lambda project: project == "a") == "a"


def test_an_event_that_is_passed_over_is_next_only_if_all_are() -> None:
    poison, healthy = waiter("a", 0.0, "poison"), waiter("a", 1.0, "healthy")
    lines = joined(poison, healthy)
    assert lines.take("a", {"poison"}) is healthy
    assert lines.take("a", {"poison"}) is poison


def test_a_waiter_that_left_is_not_chosen_instead_of_one_passed_over() -> None:
    poison, gone, later = waiter("a", 0.0, "poison"), waiter("a", 1.0), waiter("a", 2.0)
    lines = joined(poison, gone, later)
    lines.leave(gone)
    assert lines.take("a", {"poison"}) is later


def test_ten_thousand_waiters_are_served_quickly() -> None:
    """Each turn looks at only a few waiters. If it looked at all of them, it would take minutes."""
    lines = joined(*(waiter(f"p{number % 700}", float(number)) for number in range(10_000)))
    for number in range(700):
        lines.hold(f"p{number}")
        lines.release(f"p{number}")
    taken = [take(lines) for _ in range(10_000)]
    assert len(set(taken)) == 10_000
