"""Turns: in order, in time, one probe after a pause, none after the close."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from relay.outcome import Answer, Outcome, Verdict
from relay.pacing import Pacer, TurnedAway
from tests import virtual_time

TAKEN = Answer(Verdict.ACCEPTED, 202)
FAILED = Answer(Verdict.UNAVAILABLE, 500)


def limited(retry_after: float | None = 2.0) -> Answer:
    """A 429."""
    return Answer(Verdict.RATE_LIMITED, 429, retry_after=retry_after)


def new_pacer() -> Pacer:
    """On the running loop's clock, without jitter."""
    return Pacer(asyncio.get_running_loop().time, lambda low, _: low)


def in_virtual_time(test: Callable[[], Any]) -> Callable[[], None]:
    """Run an asynchronous test on the virtual loop."""

    def run() -> None:
        virtual_time.run(test())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def now() -> float:
    """Virtual seconds."""
    return asyncio.get_running_loop().time()


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


async def paused(answer: Answer, times: int = 1) -> Pacer:
    """A pacer that was told this, to as many calls at once."""
    pacer = new_pacer()
    await asyncio.sleep(1)
    for _ in range(times):
        await pacer.turn(now() + 45)
    for _ in range(times):
        pacer.report(answer)
    return pacer


@in_virtual_time
async def test_while_no_limit_is_met_turns_come_at_once() -> None:
    """A burst after a quiet second, of what that second had room for, waits for nothing."""
    pacer = new_pacer()
    await asyncio.sleep(1)
    for _ in range(50):
        await pacer.turn(now() + 45)
        pacer.report(TAKEN)
    assert now() == 1


@in_virtual_time
async def test_the_rate_doubles_while_all_is_taken() -> None:
    """A new instance is soon as fast as Svix."""
    pacer = new_pacer()
    started = pacer.rate
    while now() < 4:
        await pacer.turn(now() + 45)
        pacer.report(TAKEN)
    assert pacer.rate > 3.5 * started


@in_virtual_time
async def test_a_429_pauses_for_what_retry_after_says() -> None:
    """And not longer."""
    pacer = await paused(limited(7.0))
    paused_at = now()
    await pacer.turn(now() + 45)
    assert now() == paused_at + 7


@pytest.mark.parametrize(
    ("retry_after", "pause"), [(None, 0.5), (0.0, 0.0), (86_400.0, 60.0), (1.5, 1.5)]
)
def test_what_retry_after_does_not_say_is_decided_here(
    retry_after: float | None, pause: float
) -> None:
    """Absent: half a second; absurd: a minute."""

    async def main() -> None:
        pacer = await paused(limited(retry_after))
        paused_at = now()
        await pacer.turn(now() + 100)
        assert now() - paused_at == pause

    virtual_time.run(main())


@in_virtual_time
async def test_after_a_pause_one_probe_goes_and_all_others_wait_for_its_answer() -> None:
    """No herd."""
    pacer = await paused(limited(2.0))
    turns = [asyncio.create_task(pacer.turn(now() + 45)) for _ in range(100)]
    await asyncio.sleep(10)
    assert sum(turn.done() for turn in turns) == 1
    pacer.report(TAKEN)
    await settle()
    assert sum(turn.done() for turn in turns) == 2
    await asyncio.sleep(1)
    assert sum(turn.done() for turn in turns) < 60
    for turn in turns:
        turn.cancel()


@in_virtual_time
async def test_a_refused_probe_pauses_longer_each_time() -> None:
    """Without Retry-After: twice as long."""
    pacer = await paused(limited(None))
    pauses = []
    for _ in range(4):
        asked_at = now()
        await pacer.turn(now() + 45)
        pauses.append(now() - asked_at)
        pacer.report(limited(None))
    assert pauses == pytest.approx([0.5, 1, 2, 4])


@in_virtual_time
async def test_refusals_of_calls_sent_before_the_pause_count_once() -> None:
    """They all say the same."""
    pacer = await paused(limited(2.0), times=20)
    rate = pacer.rate
    paused_at = now()
    await pacer.turn(now() + 45)
    assert now() == paused_at + 2
    pacer.report(TAKEN)
    assert pacer.rate == pytest.approx(rate, rel=0.01)
    assert rate > 20


@in_virtual_time
async def test_one_failure_stops_nobody_and_five_in_a_row_all() -> None:
    """A lost connection is no outage."""
    pacer = await paused(FAILED, times=4)
    failed_at = now()
    await pacer.turn(now() + 45)
    assert now() == failed_at
    pacer.report(FAILED)
    await pacer.turn(now() + 45)
    assert now() == failed_at + 0.5


@in_virtual_time
async def test_an_outage_is_probed_every_five_seconds_at_the_longest() -> None:
    """So long may its end stay unnoticed."""
    pacer = await paused(FAILED, times=5)
    pauses = []
    for _ in range(6):
        asked_at = now()
        await pacer.turn(now() + 45)
        pauses.append(now() - asked_at)
        pacer.report(FAILED)
    assert pauses == pytest.approx([0.5, 1, 2, 4, 5, 5])


@in_virtual_time
async def test_a_probe_that_hung_was_pause_enough() -> None:
    """The next goes at once."""
    pacer = await paused(FAILED, times=5)
    await pacer.turn(now() + 45)
    await asyncio.sleep(10)
    pacer.report(FAILED)
    asked_at = now()
    await pacer.turn(now() + 45)
    assert now() == asked_at


@in_virtual_time
async def test_turns_come_in_the_order_of_deadlines() -> None:
    """First in, first out; a retry goes back to its place."""
    pacer = await paused(limited(2.0))
    order: list[float] = []

    async def wait(deadline: float) -> None:
        await pacer.turn(deadline)
        order.append(deadline)
        pacer.report(TAKEN)

    await asyncio.gather(*(wait(deadline) for deadline in (30.0, 31.0, 32.0, 29.0)))
    assert order == [29, 30, 31, 32]


@in_virtual_time
async def test_whoever_gets_no_turn_in_time_is_turned_away_at_the_deadline() -> None:
    """Pub/Sub takes it from there."""
    pacer = await paused(limited(2.0))
    await pacer.turn(now() + 45)  # the probe, which is not answered
    asked_at = now()
    with pytest.raises(TurnedAway) as error:
        await pacer.turn(asked_at + 10)
    assert now() == asked_at + 10
    assert error.value.outcome is Outcome.RATE_LIMITED


@in_virtual_time
async def test_a_wait_that_would_be_too_long_is_refused_before_it_begins() -> None:
    """The pause, and the queue at the present rate."""
    pacer = await paused(limited(20.0))
    assert pacer.refusal(now() + 19) is not None
    assert pacer.refusal(now() + 21) is None
    waiting = [asyncio.create_task(pacer.turn(now() + 45)) for _ in range(200)]
    await settle()
    refusal = pacer.refusal(now() + 21)
    assert refusal is not None
    assert refusal.outcome is Outcome.RATE_LIMITED
    assert refusal.retry_after == pytest.approx(20 + 200 / pacer.rate)
    for task in waiting:
        task.cancel()


@in_virtual_time
async def test_an_outage_turns_away_as_unavailable() -> None:
    """500, not 429."""
    pacer = await paused(FAILED, times=5)
    refusal = pacer.refusal(now())
    assert refusal is not None
    assert refusal.outcome is Outcome.UNAVAILABLE


@in_virtual_time
async def test_a_back_off_delays_one_turn_and_nobody_elses() -> None:
    """A retry waits apart."""
    pacer = new_pacer()
    retry = asyncio.create_task(pacer.turn(now() + 45, delay=3))
    await settle()
    await pacer.turn(now() + 45)
    assert now() == 0
    await retry
    assert now() == 3


@in_virtual_time
async def test_a_back_off_never_passes_the_deadline() -> None:
    """There would be no turn after it."""
    pacer = new_pacer()
    with pytest.raises(TurnedAway):
        await pacer.turn(now() + 2, delay=5)
    assert now() == 2


@in_virtual_time
async def test_the_close_turns_away_all_who_wait_and_all_who_come() -> None:
    """Those who back off too."""
    pacer = await paused(limited(30.0))
    waiting = [asyncio.create_task(pacer.turn(now() + 45)) for _ in range(300)]
    waiting.append(asyncio.create_task(pacer.turn(now() + 45, delay=20)))
    await settle()
    closed_at = now()
    pacer.close()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert now() == closed_at
    assert all(isinstance(r, TurnedAway) and r.outcome is Outcome.UNAVAILABLE for r in results)
    assert pacer.refusal(now() + 45) is not None
    with pytest.raises(TurnedAway):
        await pacer.turn(now() + 45)


@in_virtual_time
async def test_who_is_cancelled_leaves_the_queue() -> None:
    """Its turn goes to the next."""
    pacer = await paused(limited(2.0))
    first = asyncio.create_task(pacer.turn(now() + 44))
    second = asyncio.create_task(pacer.turn(now() + 45))
    await settle()
    first.cancel()
    await second
    assert now() == 1 + 2


@in_virtual_time
async def test_who_is_cancelled_with_a_turn_in_hand_gives_it_back() -> None:
    """Even a probe: the next one goes after another pause."""
    pacer = await paused(limited(2.0))
    first = asyncio.create_task(pacer.turn(now() + 44))
    second = asyncio.create_task(pacer.turn(now() + 45))
    await settle()
    pacer._next_at = probed_at = now()
    pacer._serve()
    first.cancel()
    await second
    assert now() == pytest.approx(probed_at + 1.0)
