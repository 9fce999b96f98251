"""Who is next: by arrival within a project, in turns between projects."""

import itertools

from relay.pacing import Waiter
from relay.pacing.lines import Lines

_numbers = itertools.count()


def waiter(project: str, arrived_at: float = 0.0, event: str | None = None) -> Waiter:
    """Somebody of this project."""
    return Waiter(project, event or f"{project}-{next(_numbers)}", arrived_at, last_turn=100.0)


def nobody(project: str) -> bool:
    """Avoids no project."""
    return False


def take(lines: Lines) -> Waiter:
    """The next one, out of the lines."""
    project = lines.next_project(nobody)
    assert project is not None
    return lines.take(project)


def joined(*waiters: Waiter) -> Lines:
    """Lines with these, who came in this order."""
    lines = Lines()
    for each in waiters:
        lines.join(each)
    return lines


def test_within_a_project_the_order_is_that_of_arrival() -> None:
    late, early, middle = (waiter("a", at) for at in (3.0, 1.0, 2.0))
    lines = joined(late, early, middle)
    assert [take(lines) for _ in range(3)] == [early, middle, late]
    assert lines.next_project(nobody) is None


def test_whoever_comes_back_takes_the_place_it_had() -> None:
    """Of several that arrived in the same moment too."""
    first, second, third = (waiter("a") for _ in range(3))
    lines = joined(first, second, third)
    assert take(lines) is first
    lines.join(first)
    assert take(lines) is first


def test_turns_go_round_the_projects() -> None:
    """A flood costs the others its share of the turns, and no more."""
    flood = [waiter("flood", float(number)) for number in range(100)]
    quiet = waiter("quiet", 1000.0)
    lines = joined(*flood, quiet)
    assert {take(lines), take(lines)} == {flood[0], quiet}
    assert take(lines) is flood[1]


def test_a_project_that_comes_back_keeps_no_place_before_those_that_wait() -> None:
    """Else one that always has just one event would be served at every second turn."""
    lines = joined(waiter("a"), waiter("b"), waiter("c"))
    assert take(lines).project == "a"
    lines.join(waiter("a"))
    assert [take(lines).project for _ in range(3)] == ["b", "c", "a"]


def test_whoever_leaves_has_no_turn() -> None:
    """And a project with nobody left has none either."""
    first, second, other = waiter("a"), waiter("a"), waiter("b")
    lines = joined(first, second, other)
    lines.leave(first)
    assert len(lines) == 2
    assert take(lines) is second
    lines.leave(other)
    assert lines.next_project(nobody) is None
    assert len(lines) == 0


def test_a_project_that_is_held_waits_and_the_others_go_on() -> None:
    held, other = waiter("a"), waiter("b")
    lines = joined(held, other)
    lines.hold("a")
    assert take(lines) is other
    assert lines.next_project(nobody) is None
    assert len(lines) == 1
    lines.release("a")
    assert take(lines) is held


def test_a_project_that_is_held_before_anybody_came_is_held_too() -> None:
    lines = Lines()
    lines.hold("a")
    lines.join(waiter("a"))
    assert lines.next_project(nobody) is None


def test_another_project_than_the_avoided_is_next_if_one_waits() -> None:
    lines = joined(waiter("a"), waiter("b"))
    assert lines.next_project(lambda project: project == "a") == "b"
    take_b = lines.take("b")
    assert take_b.project == "b"
    assert lines.next_project(lambda project: project == "a") == "a"


def test_an_event_that_is_passed_over_is_next_only_where_all_are() -> None:
    poison, healthy = waiter("a", 0.0, "poison"), waiter("a", 1.0, "healthy")
    lines = joined(poison, healthy)
    assert lines.take("a", {"poison"}) is healthy
    assert lines.take("a", {"poison"}) is poison


def test_one_who_left_is_not_the_choice_instead_of_those_passed_over() -> None:
    poison, gone, later = waiter("a", 0.0, "poison"), waiter("a", 1.0), waiter("a", 2.0)
    lines = joined(poison, gone, later)
    lines.leave(gone)
    assert lines.take("a", {"poison"}) is later


def test_ten_thousand_who_wait_are_served_in_no_time() -> None:
    """Each turn looks at a few, not at all: else this would take minutes."""
    lines = joined(*(waiter(f"p{number % 700}", float(number)) for number in range(10_000)))
    for number in range(700):
        lines.hold(f"p{number}")
        lines.release(f"p{number}")
    taken = [take(lines) for _ in range(10_000)]
    assert len(set(taken)) == 10_000
