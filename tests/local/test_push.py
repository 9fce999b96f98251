"""The push simulator: its two windows, push back-off and the retry policy, in virtual time."""

import asyncio

from local.push import Arrival, Policy, Subscription
from tests.virtual_time import in_virtual_time, settle


class Subscriber:
    """Answers pushes when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[bool]] = []
        self.pushing: asyncio.Task[None] | None = None
        """The subscription's task. It is kept here so that it is not garbage-collected."""

    async def deliver(self, _message: int) -> bool:
        """Take one push."""
        self.waiting.append(asyncio.get_running_loop().create_future())
        return await self.waiting[-1]

    async def answer(self, count: int, *, is_ack: bool) -> None:
        """Answer the first `count` pushes."""
        answered, self.waiting = self.waiting[:count], self.waiting[count:]
        for push in answered:
            push.set_result(is_ack)
        await settle()


def start(policy: Policy, messages: int = 10_000) -> tuple[Subscriber, Subscription]:
    """Start to push a backlog. No push is answered yet."""
    subscriber = Subscriber()
    subscription = Subscription(subscriber.deliver, policy)
    backlog = [Arrival(0.0, number) for number in range(messages)]
    subscriber.pushing = asyncio.create_task(subscription.run(backlog))
    return subscriber, subscription


@in_virtual_time
async def test_the_window_starts_small_and_grows_with_each_ack() -> None:
    subscriber, subscription = start(Policy())
    await settle()
    assert len(subscriber.waiting) == 3
    await subscriber.answer(3, is_ack=True)
    assert len(subscriber.waiting) == subscription.window == 6


@in_virtual_time
async def test_a_nack_halves_the_window() -> None:
    subscriber, subscription = start(Policy(initial_window=100))
    await settle()
    await subscriber.answer(1, is_ack=False)
    assert subscription.window == 50


@in_virtual_time
async def test_a_nack_does_not_shrink_the_window_below_its_minimum() -> None:
    """3,000 is Google's documented lower limit for a subscriber that makes pushes wait."""
    subscriber, subscription = start(Policy(min_window=3000, initial_window=3000))
    await settle()
    assert len(subscriber.waiting) == 3000
    await subscriber.answer(100, is_ack=False)
    assert subscription.window == 3000


@in_virtual_time
async def test_below_the_minimum_the_window_grows_only_with_acks() -> None:
    subscriber, subscription = start(Policy(min_window=3000))
    await settle()
    await subscriber.answer(2, is_ack=True)
    await subscriber.answer(1, is_ack=False)
    assert subscription.window == 5


@in_virtual_time
async def test_nacks_stop_all_pushes_for_longer_each_time_and_acks_undo_it() -> None:
    subscriber, subscription = start(Policy(initial_window=100), messages=100)
    await settle()
    await subscriber.answer(10, is_ack=False)
    assert subscription.pause_remaining == 0.1 * 2**9
    await subscriber.answer(9, is_ack=True)
    assert subscription.pause_remaining == 0.1
    await subscriber.answer(1, is_ack=True)
    assert subscription.pause_remaining == 0


@in_virtual_time
async def test_a_nacked_message_is_pushed_again_after_ten_seconds() -> None:
    subscriber, _ = start(Policy(), messages=1)
    await settle()
    await subscriber.answer(1, is_ack=False)
    await asyncio.sleep(9.99)
    assert not subscriber.waiting
    await asyncio.sleep(0.02)
    assert subscriber.waiting
