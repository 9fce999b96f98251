"""Turns, in virtual time: in order, at the rate, with one probe in a pause. No turn is lost."""

import asyncio
import random

import pytest

from relay.outcome import Answer, Call, Outcome, Verdict
from relay.pacing import NoTurn, Pacer, Turn, Waiter, tuning
from tests.virtual_time import in_virtual_time, now, settle

TAKEN = Answer(Call.SEND, Verdict.ACCEPTED, 202)
FAILED = Answer(Call.SEND, Verdict.UNAVAILABLE, 500)
REFUSED = Answer(Call.SEND, Verdict.RATE_LIMITED, 429)
MISSING = Answer(Call.ASK, Verdict.MISSING, 404)


def new_pacer() -> Pacer:
    """A pacer on the running loop's clock, without jitter."""
    return Pacer(asyncio.get_running_loop().time, lambda low, _: low)


def waiter(project: str = "acme", event: str = "event", last_turn: float = 1e6) -> Waiter:
    """A waiter that arrives now."""
    return Waiter(project, event, now(), last_turn)


async def call(pacer: Pacer, place: Waiter, answer: Answer, seconds: float = 0.0) -> Turn:
    """Use one turn for a call that is answered after `seconds`."""
    async with pacer.turn(place) as turn:
        turn.begin()
        await asyncio.sleep(seconds)
        turn.report(answer)
    return turn


def start(
    pacer: Pacer, count: int, answer: Answer, seconds: float = 0.0, project: str = "acme"
) -> list[asyncio.Task[Turn]]:
    """Start `count` calls at once."""
    return [
        asyncio.create_task(call(pacer, waiter(project, f"{project} {number}"), answer, seconds))
        for number in range(count)
    ]


async def cancel(tasks: list[asyncio.Task[Turn]]) -> None:
    """Cancel the tasks, and wait for their end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def limited() -> Pacer:
    """A pacer that has met a limit of 40 a second, after the silence that follows."""
    pacer = new_pacer()
    await asyncio.gather(*start(pacer, 40, TAKEN))
    await call(pacer, waiter(), REFUSED)
    await asyncio.sleep(tuning.SILENCE)
    return pacer


async def in_outage() -> Pacer:
    """A pacer in an outage that has just begun."""
    pacer = new_pacer()
    await asyncio.gather(
        *start(pacer, 4, FAILED, project="a"), *start(pacer, 1, FAILED, project="b")
    )
    assert pacer.state().paused
    return pacer


@in_virtual_time
async def test_while_no_limit_is_met_only_the_calls_in_flight_are_bounded() -> None:
    pacer = new_pacer()
    calls = start(pacer, 100, TAKEN, seconds=1.0)
    await settle()
    assert pacer.state().in_flight == tuning.FIRST_WINDOW
    await asyncio.sleep(1.0)
    await settle()
    assert pacer.state().in_flight == 2 * tuning.FIRST_WINDOW
    await asyncio.gather(*calls)
    assert now() == 3


@in_virtual_time
async def test_one_project_fills_half_the_window_at_most_while_others_wait() -> None:
    """At a cold start, sixty hanging calls of one customer do not stop the others."""
    pacer = new_pacer()
    hanging = start(pacer, 60, FAILED, seconds=10.0, project="hanging")
    others = start(pacer, 60, TAKEN, seconds=0.1, project="others")
    await asyncio.wait_for(asyncio.gather(*others), 2.0)
    await cancel(hanging)


@in_virtual_time
async def test_once_a_limit_is_known_turns_are_spaced() -> None:
    pacer = await limited()
    started = now()
    await asyncio.gather(*start(pacer, 40, TAKEN))
    assert now() - started == pytest.approx(0.85, abs=0.1)  # 40 a second, and rising


@in_virtual_time
async def test_waiters_are_served_in_order_of_arrival_and_a_retry_keeps_its_place() -> None:
    pacer = await limited()
    served: list[str] = []

    async def attempt(place: Waiter) -> None:
        async with pacer.turn(place) as turn:
            turn.begin()
            served.append(place.event)
            turn.report(TAKEN)

    retried = waiter(event="retried")
    await asyncio.sleep(0.001)
    later = [waiter(event=str(number)) for number in range(10)]
    blocking = start(pacer, 5, TAKEN)
    await settle()
    attempts = [asyncio.create_task(attempt(place)) for place in [*later, retried]]
    await asyncio.gather(*blocking, *attempts)
    assert served.index("retried") < served.index("0")


@in_virtual_time
async def test_a_turn_that_ends_without_a_call_goes_to_the_next_waiter_at_once() -> None:
    """A thousand duplicates use up no turn."""
    pacer = await limited()
    started = now()
    for _ in range(1000):
        async with pacer.turn(waiter()):
            pass
    assert now() - started < 0.1
    assert pacer.state().in_flight == 0
    assert pacer.state().rate == 40


@in_virtual_time
async def test_a_call_that_is_left_without_a_report_counts_as_failed() -> None:
    pacer = new_pacer()

    async def break_off() -> None:
        async with pacer.turn(waiter()) as turn:
            turn.begin()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await break_off()
    assert pacer.state().failed == 1
    assert pacer.state().in_flight == 0


@in_virtual_time
async def test_at_most_a_quarter_of_a_seconds_turns_are_open_without_a_call() -> None:
    """A slow ledger must not cause a burst at Svix."""
    pacer = await limited()
    claimed = asyncio.Event()

    async def attempt() -> None:
        async with pacer.turn(waiter()) as turn:
            await claimed.wait()
            turn.begin()
            turn.report(TAKEN)

    attempts = [asyncio.create_task(attempt()) for _ in range(100)]
    await asyncio.sleep(5.0)
    assert pacer.state().in_flight <= 40 / 4 + 1
    claimed.set()
    await asyncio.gather(*attempts)


@in_virtual_time
async def test_however_low_the_rate_one_turn_may_be_given() -> None:
    pacer = new_pacer()
    await call(pacer, waiter(), REFUSED)
    started = now()
    await asyncio.gather(*start(pacer, 2, TAKEN))
    assert now() - started < 2 / tuning.LOWEST_LEVEL


@in_virtual_time
async def test_without_a_turn_in_time_the_reason_is_given() -> None:
    """The outcome says what held the turn back: Svix's limit, Svix, or the ledger."""
    hung = new_pacer()
    calls = start(hung, tuning.FIRST_WINDOW, TAKEN, seconds=100.0)
    failing = new_pacer()
    await asyncio.gather(*start(failing, 5, FAILED))
    ledgerless = new_pacer()
    async with ledgerless.turn(waiter()) as turn:
        turn.ledger_failed()
    refusing = new_pacer()
    await call(refusing, waiter(), REFUSED)
    await settle()
    for pacer, outcome in [
        (hung, Outcome.UNAVAILABLE),
        (failing, Outcome.UNAVAILABLE),
        (ledgerless, Outcome.LEDGER_UNAVAILABLE),
        (refusing, Outcome.RATE_LIMITED),
    ]:
        last_turn = now() + 0.01
        with pytest.raises(NoTurn) as error:
            await call(pacer, waiter(last_turn=last_turn), TAKEN)
        assert now() == pytest.approx(last_turn)
        assert error.value.outcome is outcome
        assert error.value.retry_after >= 0
        assert pacer.state().waiting == 0
    await cancel(calls)


@in_virtual_time
async def test_after_its_last_turn_a_waiter_gets_none() -> None:
    """A free turn is of no use, because no time is left for the call."""
    pacer = new_pacer()
    await asyncio.sleep(1)
    with pytest.raises(NoTurn):
        await call(pacer, waiter(last_turn=0.5), TAKEN)


@in_virtual_time
async def test_a_cancelled_waiter_leaves_the_line() -> None:
    pacer = await limited()
    gone, stays = start(pacer, 10, TAKEN), start(pacer, 1, TAKEN)
    await settle()
    await cancel(gone)
    started = now()
    await stays[0]
    assert now() - started < 2 / 40


@in_virtual_time
async def test_a_turn_given_to_a_waiter_that_is_just_cancelled_goes_to_the_next() -> None:
    pacer = await in_outage()
    first, second = start(pacer, 1, TAKEN, project="x"), start(pacer, 1, TAKEN, project="y")
    await settle()
    pacer._traffic.pauses.taken("a", now())
    pacer._serve()  # both have their turn, and neither has run since
    await cancel(first)
    await second[0]
    assert pacer.state().in_flight == 0
    assert pacer.state().waiting == 0


@in_virtual_time
async def test_a_probe_that_is_cancelled_before_its_call_lets_the_next_go() -> None:
    pacer = await in_outage()

    async def claim_forever() -> None:
        async with pacer.turn(waiter("x")):
            await asyncio.sleep(1e6)

    probing = asyncio.create_task(claim_forever())
    await asyncio.sleep(0.6)
    other = start(pacer, 1, TAKEN, project="y")
    probing.cancel()
    await other[0]
    assert now() == pytest.approx(0.6)


@in_virtual_time
async def test_after_an_outages_pause_one_probe_goes_and_then_all_calls() -> None:
    """A Svix that has just recovered must not get all calls at once."""
    pacer = await in_outage()
    calls = start(pacer, 20, TAKEN, seconds=0.1)
    await asyncio.sleep(0.55)
    assert pacer.state().in_flight == 1
    await asyncio.gather(*calls)
    assert now() == pytest.approx(0.5 + 0.1 + 0.1)


@in_virtual_time
async def test_asking_does_not_end_an_outage_and_the_next_probe_goes_at_once() -> None:
    pacer = await in_outage()
    await call(pacer, waiter("x"), MISSING)
    assert pacer.state().paused
    await call(pacer, waiter("x"), TAKEN)
    assert now() == 0.5
    assert not pacer.state().paused


@in_virtual_time
async def test_a_turn_given_before_an_outage_is_superseded_by_it() -> None:
    pacer = new_pacer()
    async with pacer.turn(waiter("x")) as turn:
        before = turn.superseded
        await asyncio.sleep(0.1)
        await asyncio.gather(*start(pacer, 4, FAILED, project="a"), *start(pacer, 1, FAILED))
        assert (before, turn.superseded) == (False, True)
    assert pacer.state().paused


@in_virtual_time
async def test_while_the_ledger_does_not_answer_only_one_claim_at_a_time_is_sent() -> None:
    """The pause begins with the first failure and ends with the first answered claim."""
    pacer = new_pacer()
    claims: list[float] = []

    async def attempt(number: int) -> None:
        place = waiter(f"project {number}")
        while True:
            async with pacer.turn(place) as turn:
                claims.append(now())
                if now() < 10:
                    turn.ledger_failed()
                    continue
                turn.begin()
                turn.report(TAKEN)
                return

    await asyncio.gather(*(attempt(number) for number in range(20)))
    assert sum(at < 10 for at in claims) < 10
    assert now() < 16


@in_virtual_time
async def test_poison_of_one_project_does_not_delay_the_others() -> None:
    """Twenty events always fail and are tried again and again, beside ten good ones a second."""
    pacer = new_pacer()
    poison = [waiter("poison", f"poison {number}") for number in range(20)]
    waits: list[float] = []

    async def fail(place: Waiter) -> None:
        while True:
            await call(pacer, place, FAILED, seconds=0.1)
            await asyncio.sleep(0.2)

    async def deliver(number: int) -> None:
        asked_at = now()
        await call(pacer, waiter("healthy", str(number)), TAKEN, seconds=0.1)
        waits.append(now() - asked_at)

    failing = [asyncio.create_task(fail(place)) for place in poison]
    healthy = []
    for number in range(600):
        healthy.append(asyncio.create_task(deliver(number)))
        await asyncio.sleep(0.1)
    await asyncio.gather(*healthy)
    assert max(waits) < 0.2
    assert pacer.state().failed < 60
    for task in failing:
        task.cancel()


@in_virtual_time
async def test_serves_others_since_counts_other_projects_only() -> None:
    pacer = new_pacer()
    await call(pacer, waiter("a"), TAKEN)
    await asyncio.sleep(1)
    await call(pacer, waiter("b"), TAKEN)
    await call(pacer, waiter("b"), TAKEN)
    assert pacer.serves_others_since("a", 1.0)
    assert pacer.serves_others_since("b", 0.0)
    assert not pacer.serves_others_since("b", 0.5)


@in_virtual_time
async def test_must_wait_says_whether_a_turn_is_free() -> None:
    pacer = new_pacer()
    assert not pacer.must_wait(waiter())
    pacer = await limited()
    assert not pacer.must_wait(waiter())
    calls = start(pacer, 20, TAKEN)
    await settle()
    assert pacer.must_wait(waiter())
    await asyncio.gather(*calls)
    failing = new_pacer()
    await asyncio.gather(*start(failing, 5, FAILED, project="poison"))
    assert failing.must_wait(waiter("poison"))
    assert not failing.must_wait(waiter("other"))


async def attempt_at_random(pacer: Pacer, place: Waiter, rng: random.Random) -> None:
    """Make attempts that end at random, until Svix accepts one or one breaks off."""
    while True:
        async with pacer.turn(place) as turn:
            await asyncio.sleep(rng.choice([0, 0.01, 1]))
            what = rng.random()
            if what < 0.03:
                turn.ledger_failed()
            elif what > 0.1 and not turn.superseded:
                turn.begin()
                await asyncio.sleep(rng.expovariate(5))
                if what < 0.15:
                    return
                answer = rng.choice([TAKEN] * 20 + [FAILED, FAILED, REFUSED, MISSING])
                turn.report(answer)
                if answer is TAKEN:
                    return


@pytest.mark.parametrize("seed", range(10))
@in_virtual_time
async def test_no_turn_and_no_waiter_is_ever_lost(seed: int) -> None:
    """After random answers, cancellations and timeouts, the pacer is empty again."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    pacer = Pacer(asyncio.get_running_loop().time, rng.uniform)
    requests = []
    for number in range(400):
        place = waiter(f"project {number % 7}", str(number), now() + rng.uniform(1, 60))
        requests.append(asyncio.create_task(attempt_at_random(pacer, place, rng)))
        await asyncio.sleep(rng.uniform(0, 0.1))
        if rng.random() < 0.2:
            rng.choice(requests).cancel()
    ended = await asyncio.gather(*requests, return_exceptions=True)
    assert {type(end) for end in ended} == {type(None), NoTurn, asyncio.CancelledError}
    state = pacer.state()
    assert (state.waiting, state.in_flight) == (0, 0)
    assert pacer._traffic._uncalled == 0
    assert not pacer._granted
    await call(pacer, waiter("another"), TAKEN)
