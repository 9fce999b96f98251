"""A backlog against a rate limit, in virtual time: how much of the limit is used, how few refused.

Deterministic: the pacer, a model of Svix's token bucket, and the push simulator of the bench.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from local.push import Arrival, Subscription
from relay.outcome import Answer, Verdict
from relay.pacing import Pacer, TurnedAway
from tests import virtual_time

BUDGET = 45.0  # seconds that a request may wait for its turn
BURST = 50.0
OK = Answer(Verdict.ACCEPTED, 202)
DOWN = Answer(Verdict.UNAVAILABLE, 500)


@dataclass
class Svix:
    """A token bucket whose rate may change with time, and which may be down."""

    rate: Callable[[float], float]
    latency: float = 0.1
    down: Callable[[float], bool] = lambda _: False
    retry_after: float | None = 1.0
    said: Counter[Verdict] = field(default_factory=Counter)
    taken: Counter[int] = field(default_factory=Counter)
    _tokens: float = BURST
    _filled_at: float = 0.0

    async def call(self, message: int, uniform: Callable[[float, float], float]) -> Answer:
        """One call, there and back."""
        await asyncio.sleep(self.latency / 2 * uniform(0.8, 1.2))
        answer = self._answer(message)
        self.said[answer.verdict] += 1
        await asyncio.sleep(self.latency / 2 * uniform(0.8, 1.2))
        return answer

    def _answer(self, message: int) -> Answer:
        now = asyncio.get_running_loop().time()
        if self.down(now):
            return DOWN
        self._tokens = min(BURST, self._tokens + (now - self._filled_at) * self.rate(now))
        self._filled_at = now
        if self._tokens < 1:
            return Answer(Verdict.RATE_LIMITED, 429, retry_after=self.retry_after)
        self._tokens -= 1
        self.taken[message] += 1
        return OK


def drain(
    svix: Svix,
    arrivals: Sequence[Arrival],
    *,
    instances: int = 1,
    seed: int = 1,
    limit: float | None = None,
) -> Subscription:
    """Push everything through so many instances; requests go to the one with the fewest."""

    async def main() -> Subscription:
        loop = asyncio.get_running_loop()
        uniform = random.Random(seed).uniform  # noqa: S311 - reproducible, not secret
        pacers = [Pacer(loop.time, uniform) for _ in range(instances)]
        busy = [0] * instances

        async def deliver(message: int) -> bool:
            instance = busy.index(min(busy))
            busy[instance] += 1
            try:
                return await attempt(pacers[instance], message)
            finally:
                busy[instance] -= 1

        async def attempt(pacer: Pacer, message: int) -> bool:
            deadline = loop.time() + BUDGET
            if pacer.refusal(deadline):
                return False
            delay = 0.0
            while True:
                try:
                    await pacer.turn(deadline, delay)
                except TurnedAway:
                    return False
                answer = DOWN
                try:
                    answer = await svix.call(message, uniform)
                finally:
                    pacer.report(answer)
                if answer.verdict is Verdict.ACCEPTED:
                    return True
                delay = 0.0 if answer.verdict is Verdict.RATE_LIMITED else 1.0

        subscription = Subscription(deliver)
        await subscription.run(list(arrivals), limit)
        return subscription

    return virtual_time.run(main())


def backlog(events: int) -> list[Arrival]:
    """All there from the start."""
    return [Arrival(0.0, number) for number in range(events)]


def rejected_share(svix: Svix) -> float:
    """Of all calls."""
    return svix.said[Verdict.RATE_LIMITED] / svix.said.total()


@pytest.mark.parametrize("retry_after", [1.0, None])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_one_instance_uses_nearly_all_of_the_limit(seed: int, retry_after: float | None) -> None:
    """At least 0.95 of it, with at most 1 % of calls refused and no nack."""
    svix = Svix(lambda _: 50.0, retry_after=retry_after)
    subscription = drain(svix, backlog(2000), seed=seed)
    allowed = BURST + 50 * max(subscription.acked.values())
    assert len(subscription.acked) / allowed >= 0.95
    assert rejected_share(svix) <= 0.01
    assert not subscription.nacked


@pytest.mark.parametrize("seed", range(8))
def test_two_instances_find_their_shares_of_the_limit(seed: int) -> None:
    """At least 0.9 of it, with at most 2 % of calls refused and no nack."""
    svix = Svix(lambda _: 50.0)
    subscription = drain(svix, backlog(2000), instances=2, seed=seed)
    allowed = BURST + 50 * max(subscription.acked.values())
    assert len(subscription.acked) / allowed >= 0.9
    assert rejected_share(svix) <= 0.02
    assert not subscription.nacked


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_limit_that_changes_is_found_again(seed: int) -> None:
    """Halved after 20 s, doubled after 40: at least 0.9 of what was allowed."""
    svix = Svix(lambda now: 25.0 if 20 <= now < 40 else 50.0)
    drain(svix, backlog(5000), seed=seed, limit=60)
    assert (svix.said[Verdict.ACCEPTED] - BURST) / (20 * (50 + 25 + 50)) >= 0.9


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_after_an_outage_nothing_is_lost_and_the_wait_is_made_good(seed: int) -> None:
    """45 s down under a steady 20/s: what came in its last 30 s is not even nacked."""
    svix = Svix(lambda _: 200.0, down=lambda now: 10 <= now < 55)
    arrivals = [Arrival(number / 20, number) for number in range(20 * 90)]
    subscription = drain(svix, arrivals, seed=seed)
    assert svix.taken == Counter(range(len(arrivals)))
    late = {arrival.message for arrival in arrivals if 25 <= arrival.at < 55}
    assert not late & {message for _, message in subscription.nacked}
    recovered = [at for at in subscription.acked.values() if 65 <= at < 75]
    assert len(recovered) >= 10 * 20


def test_an_outage_is_probed_not_hammered() -> None:
    """A minute of it costs a dozen calls or so, however many wait."""
    svix = Svix(lambda _: 200.0, down=lambda now: now < 60)
    drain(svix, backlog(500), limit=59)
    assert svix.said[Verdict.UNAVAILABLE] < 30
