"""A backlog against a rate limit, in virtual time: like `make bench ARGS=drain`, but smaller.

The runs use the relay's own delivery and pacer, between models of Pub/Sub and Svix. Each run is
reproducible.
"""

import asyncio
import random
from dataclasses import replace

import pytest

from bench import drain, model
from bench.drain import BUSY, FLOOR, HALVING, Scenario
from bench.shares import WITHIN, change
from local.push import Policy, Subscription
from tests import virtual_time

SMALL = Scenario("", used=0.9, refused=0.03, events=2000)
"""The goals are lower than with 20,000 events, because the start and the end weigh more."""


def check(scenario: Scenario, seed: int = 1) -> drain.Run:
    """Run a scenario. It must meet its goals without a nack."""
    run = drain.drain(scenario, seed)
    assert run.used >= scenario.used
    assert run.refused <= scenario.refused
    assert run.nacks == 0
    assert run.missing == 0
    return run


@pytest.mark.parametrize("policy", [HALVING, FLOOR, BUSY], ids=["halving", "floor", "busy"])
def test_one_instance_uses_nearly_all_of_the_limit(policy: Policy) -> None:
    """It does so without a nack, however Pub/Sub's window behaves."""
    check(replace(SMALL, policy=policy, used=0.97, refused=0.045))


@pytest.mark.parametrize("instances", [2, 4])
def test_several_instances_find_their_shares_of_the_limit(instances: int) -> None:
    """No instance knows how many there are. One that has no more requests frees its share."""
    check(replace(SMALL, instances=instances, events=3000))


def test_three_thousand_pushes_at_once_fit_four_instances_and_their_budget() -> None:
    """3,000 is Google's lower limit of the window. Each push waits for its turn; none is nacked."""
    run = check(replace(SMALL, instances=4, policy=BUSY, events=3000, used=0.85, refused=0.05))
    assert max(run.waiting) > 2500


def test_a_limit_that_changes_is_found_again() -> None:
    """The limit is halved after 20 s, and doubled after 20 s more."""
    check(replace(SMALL, instances=2, halved_every=20.0, used=0.85, refused=0.05))


@pytest.mark.parametrize("retry_after", [None, 30.0])
def test_a_long_retry_after_does_not_leave_the_limit_unused(retry_after: float | None) -> None:
    """A single refusal only lowers the rate.

    Retry-After counts only if several refusals in a row stop all calls.
    """
    check(replace(SMALL, instances=2, retry_after=retry_after))


@pytest.mark.parametrize(("latency", "refused"), [(0.02, 0.03), (1.0, 0.12)])
def test_the_limit_is_used_whether_svix_is_fast_or_slow(latency: float, refused: float) -> None:
    """With a latency of a second, many calls are under way when the first refusal arrives.

    They are refused too. They weigh ten times as much here as in the bench, which has ten times as
    many events.
    """
    check(replace(SMALL, instances=2, latency=latency, used=0.8, refused=refused))


def test_an_instance_killed_and_one_started_lose_nothing() -> None:
    """The killed instance's events are nacked, and the other instances deliver them."""
    scenario = replace(SMALL, instances=4, swap_at=15.0)
    run = drain.drain(scenario, 1)
    assert run.missing == 0
    assert run.nacks > 0
    assert run.used >= 0.85


def test_the_defaults_serve_twenty_eight_a_second_without_a_nack() -> None:
    """3,000 waiting pushes take 107 s, and they have 220 s."""
    check(replace(SMALL, instances=4, rate=28.0, used=0.85, refused=0.07))


def test_without_a_limit_a_new_instance_is_as_fast_as_a_warm_one() -> None:
    """Each run has 1,000 events, 200 at a time. An event costs 3 ms of processor time."""

    async def main() -> list[float]:
        uniform = random.Random(1).uniform  # noqa: S311 - reproducible, not secret
        svix = model.Svix(uniform, lambda _: None)
        relay = model.Relay(svix, uniform)
        processor = asyncio.Lock()
        seconds = []
        for run in range(2):

            async def deliver(message: int) -> bool:
                async with processor:
                    await asyncio.sleep(0.003)
                return await relay.deliver(message)

            started = model.now()
            subscription = Subscription(deliver, Policy(min_window=200, initial_window=200))
            backlog = [
                replace(each, message=each.message + 1000 * run) for each in model.backlog(1000)
            ]
            await subscription.run(backlog)
            seconds.append(model.now() - started)
        return seconds

    cold, warm = virtual_time.run(main())
    assert warm / cold >= 0.9


def test_instances_find_new_shares_within_a_minute_of_a_stop_or_a_start() -> None:
    """An instance is not told that another one has stopped or started."""
    shares = change(seed=1, instances=2, rate=20.0)
    assert shares.stopped <= WITHIN
    assert shares.started <= WITHIN
    assert max(shares.refused_without, shares.refused_with) <= 0.03
