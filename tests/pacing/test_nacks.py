"""Nacks are spaced and in order, and happen at the deadline at the latest."""

import asyncio
import itertools

from relay.pacing.nacks import Nacks
from tests.virtual_time import in_virtual_time, now, settle


def new_nacks(acks: int = 0) -> Nacks:
    """Nacks on the running loop's clock, after this many acks."""
    nacks = Nacks(asyncio.get_running_loop().time)
    for _ in range(acks):
        nacks.acked()
    return nacks


@in_virtual_time
async def test_the_first_nack_waits_for_two_acks() -> None:
    nacks = new_nacks(acks=1)
    waiting = asyncio.create_task(nacks.acquire(100.0))
    await settle()
    assert not waiting.done()
    nacks.acked()
    assert await waiting
    assert now() == 0


@in_virtual_time
async def test_the_next_nack_comes_half_a_second_later_at_the_earliest() -> None:
    """It waits that long, however many acks there were."""
    nacks = new_nacks(acks=100)
    assert await nacks.acquire(100.0)
    for _ in range(100):
        nacks.acked()
    assert await nacks.acquire(100.0)
    assert now() == 0.5


@in_virtual_time
async def test_acks_before_the_last_nack_do_not_count() -> None:
    """Each nack doubles Pub/Sub's back-off. Only acks that follow it can undo that."""
    nacks = new_nacks(acks=100)
    assert await nacks.acquire(100.0)
    assert not await nacks.acquire(10.0)
    assert now() == 10


@in_virtual_time
async def test_a_nack_at_the_deadline_counts_as_one() -> None:
    nacks = new_nacks()
    await nacks.space(5.0)
    assert now() == 5
    nacks.acked()
    nacks.acked()
    assert await nacks.acquire(100.0)
    assert now() == 5.5


@in_virtual_time
async def test_after_its_deadline_a_request_does_not_wait() -> None:
    nacks = new_nacks()
    await asyncio.sleep(3)
    assert not await nacks.acquire(1.0)
    assert now() == 3


@in_virtual_time
async def test_twenty_requests_nack_one_by_one_in_order() -> None:
    """Together they would raise the push back-off to its maximum of a minute."""
    nacks = new_nacks()
    nacked: list[tuple[int, float]] = []

    async def nack(number: int) -> None:
        assert await nacks.acquire(1000.0)
        nacked.append((number, now()))

    waiting = [asyncio.create_task(nack(number)) for number in range(20)]
    while not all(task.done() for task in waiting):
        await asyncio.sleep(0.1)
        nacks.acked()
    assert [number for number, _ in nacked] == list(range(20))
    times = [at for _, at in nacked]
    assert all(later - earlier > 0.499 for earlier, later in itertools.pairwise(times))


@in_virtual_time
async def test_a_cancelled_request_uses_up_no_nack() -> None:
    nacks = new_nacks()
    gone = asyncio.create_task(nacks.acquire(100.0))
    stays = asyncio.create_task(nacks.acquire(100.0))
    await settle()
    gone.cancel()
    await settle()
    nacks.acked()
    nacks.acked()
    assert await stays
