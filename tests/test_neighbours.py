"""What customers do to each other, in virtual time: like `make bench ARGS=neighbours`, but smaller.

The runs use the relay's own delivery and pacer, between models of Pub/Sub and Svix. Each run is
reproducible.
"""

from dataclasses import replace

import pytest

from bench import model, neighbours
from bench.neighbours import NACKS, Seen, World, run


def one_run(world: World, *, shared: bool = True) -> Seen:
    """One run of a world, used for both runs of `Seen`."""
    seen = run(world, obvious=False, seed=1, shared=shared)
    return Seen(seen, seen)


@pytest.mark.parametrize("kind", ["500", "hanging", "in turn"])
@pytest.mark.parametrize(("rate", "projects"), [(10.0, 20), (1.0, 20), (1.0, 1)])
def test_poison_of_one_project_delays_no_other(kind: str, rate: float, projects: int) -> None:
    """Twenty events of one project always fail. The others are neither delayed nor nacked."""
    seen = one_run(neighbours.poison(kind, rate, projects, minutes=4.0))
    assert neighbours.P99_FROM_PUSH.of(seen) <= 1.0
    assert neighbours.P99_FROM_PUBLISHING.of(seen) <= 1.0
    assert seen.shared.nacks(seen.shared.others()) == 0
    times = sorted(at for at, _ in seen.shared.nacked)
    assert len(times) >= 10  # the poison is redelivered
    # Twenty nacks at once would stop all pushes for a minute. So each of the four instances spaces
    # its nacks.
    assert max(sum(at <= each < at + 1 for each in times) for at in times) <= 8


def test_a_flood_delays_a_quiet_project_by_its_share_of_the_turns() -> None:
    """If all projects shared one line, its events would wait for the whole flood.

    The limit is used in full.
    """
    seen = one_run(neighbours.flood(6000, ends_at=60.0), shared=False)
    assert neighbours.P99_FROM_PUSH.of(seen) <= 2.0
    assert seen.apart.used >= 0.97


def test_calls_that_hang_cost_the_others_nothing() -> None:
    """2 calls in 1,000 hang. That prolongs the drain by one call's time limit at most."""
    healthy = World(tuple(model.backlog(2000)))
    seconds = [
        max(one_run(world).shared.acked.values())
        for world in (healthy, replace(healthy, goes_wrong="2 in 1,000 hang"))
    ]
    assert seconds[1] <= seconds[0] + model.CALL_SECONDS + 2


def test_while_half_of_all_calls_fail_nothing_is_nacked() -> None:
    """In its budget, each event has time for a dozen attempts."""
    seen = one_run(World(tuple(model.steady(10.0, 120.0)), "half fail for 5 min"))
    assert NACKS.of(seen) == 0
    assert neighbours._missing(seen) == 0


@pytest.mark.parametrize("projects", [1, 20])
@pytest.mark.parametrize("kind", ["500", "hanging"])
def test_an_outage_loses_nothing_and_the_full_rate_returns_within_ten_seconds(
    kind: str, projects: int
) -> None:
    """Svix fails for 45 s. The recovery must be as fast with one project as with twenty."""
    seen = one_run(neighbours.outage(kind, projects))
    assert neighbours._missing(seen) == 0
    assert NACKS.of(seen) == 0
    assert neighbours._back_at_full_rate(seen) >= 20


def test_in_an_outage_only_probes_are_sent() -> None:
    """Each instance makes one or two calls every five seconds, however many requests wait."""
    world = replace(neighbours.outage("500", 20), ends_at=54.0)
    seen = one_run(world)
    assert seen.shared.failed < 4 * 25
