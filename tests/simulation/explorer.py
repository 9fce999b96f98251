"""Tries every schedule: which delivery goes next, what goes wrong, and when.

A run is determined by its choices. At each new choice the explorer takes the first option, and
returns later for the others. It does not go on from a state that it has already explored.
"""

import asyncio
import contextlib
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, cast

from relay.delivery import Delivery
from relay.envelope import Event, Source
from relay.outcome import Outcome, Result
from relay.pacing import NoTurn, Pacer
from relay.waits import Waits
from tests.simulation.model import (
    ASK_FAULTS,
    HANGS_SECONDS,
    LANDING,
    LEASE,
    OK,
    RACE_SECONDS,
    SEND_FAULTS,
    ModelLedger,
    ModelPacer,
    ModelSender,
    Op,
    World,
    call,
    failed,
)

HOUR = 3600.0
LATER = (0.0, LEASE + 10, 13 * HOUR, 72 * HOUR)
"""The times that Pub/Sub may take to redeliver."""
BUDGET = 60.0  # seconds, of a request
PAUSES_LENGTHENED = 8.0
"""Every pause of a delivery is lengthened by this factor. So there are fewer polls and retries, and
fewer schedules, but all kinds of schedules."""
HEALING = 6  # redeliveries without faults after which an event must be acknowledged


class Violation(AssertionError):
    """An invariant does not hold. The message is the schedule that leads there."""


class Known(Exception):
    """This state was explored before."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """The deliveries of events, the number of faults and turns, and the models."""

    deliveries: tuple[str, ...]
    faults: int
    turns: int = 4
    waits: bool = False
    """Whether a request must wait for its first turn, and so reads the record first."""
    world: Callable[[], World] = World
    ledger: Callable[[World], ModelLedger] = ModelLedger
    sender: Callable[[], ModelSender] = ModelSender


@dataclass(slots=True)
class Worker:
    """One delivery of an event."""

    event: str
    coroutine: Coroutine[Any, Any, Result]
    clock: list[float]
    """A single number: the seconds that this request has slept, or waited for an answer."""
    race_ends_at: float = RACE_SECONDS
    """Until then Svix may answer 409: another event creates the application, or a send whose answer
    did not come holds the lock of its key."""
    waits_for: Op | None = None
    history: list[str] = field(default_factory=list)
    acked: bool | None = None
    """None while it is under way."""


@dataclass(slots=True)
class Explorer:
    """Explores a scenario. It counts the schedules and states that it has tried."""

    scenario: Scenario
    schedules: int = 0
    states: set[object] = field(default_factory=set)

    def explore(self, limit: float = math.inf) -> None:
        """Try all schedules, or the first `limit`. Raises `Violation`."""
        prefixes: list[list[int]] = [[]]
        while prefixes and self.schedules < limit:
            run = Run(self, prefixes.pop())
            try:
                run.execute()
                self.schedules += 1
            except Known:
                pass
            prefixes.extend(run.alternatives)


class Run:
    """One schedule."""

    def __init__(self, explorer: Explorer, prefix: list[int]) -> None:
        self._explorer = explorer
        self._prefix = prefix
        self._taken: list[int] = []
        self.alternatives: list[list[int]] = []
        self._story: list[str] = []
        self._scenario = explorer.scenario
        self._world = explorer.scenario.world()
        self._faults = explorer.scenario.faults
        self._workers: list[Worker] = []
        self._unstarted = list(explorer.scenario.deliveries)
        self._late: list[Op] = []
        self._acked: set[str] = set()

    def execute(self) -> None:
        """Run with faults, then redeliver without faults, then check the invariants."""
        while options := self._options():
            self._do(*options[self._choose(len(options), options)])
        for event in sorted(set(self._scenario.deliveries)):
            self._heal(event)
        self._check()

    # -- choices

    def _choose(self, count: int, options: object) -> int:
        if len(self._taken) < len(self._prefix):
            choice = self._prefix[len(self._taken)]
        else:
            state = self._state(options)
            if state in self._explorer.states:
                raise Known
            self._explorer.states.add(state)
            choice = 0
            self.alternatives.extend([*self._taken, other] for other in range(1, count))
        self._taken.append(choice)
        return choice

    def _state(self, options: object) -> object:
        workers = tuple(sorted((w.event, repr(w.acked), *w.history) for w in self._workers))
        late = tuple(map(repr, self._late))
        acked = tuple(sorted(self._acked))
        return hash((self._world.state(), workers, late, acked, self._faults, repr(options)))

    def _options(self) -> list[tuple[str, int, str]]:
        """What may happen next, each as (what, whose, how)."""
        active = [n for n, worker in enumerate(self._workers) if worker.acked is None]
        for number in active:
            op = self._workers[number].waits_for
            if op is not None and op.is_private:
                return self._steps(number)
        options: list[tuple[str, int, str]] = []
        if self._unstarted:
            options.append(("start", 0, ""))
        for number in active:
            options.extend(self._steps(number))
        options.extend(("land", number, "") for number in range(len(self._late)))
        if options and self._faults and self._workers:
            # While a delivery runs, only a lease can pass: no request takes hours.
            options.extend(
                ("wait", int(seconds), "") for seconds in (LATER[1:2] if active else LATER[1:])
            )
        return options

    def _steps(self, number: int) -> list[tuple[str, int, str]]:
        """What may happen to the call of this worker."""
        worker = self._workers[number]
        assert worker.waits_for is not None
        faults = worker.waits_for.faults if self._faults else ()
        is_over = worker.clock[0] >= worker.race_ends_at
        possible = (fault for fault in faults if not (is_over and fault == "race"))
        return [("step", number, ""), *(("step", number, fault) for fault in possible)]

    # -- what happens

    def _do(self, what: str, whose: int, how: str) -> None:
        self._story.append(f"{what} {whose} {how}")
        match what:
            case "start":
                self._start(self._unstarted.pop(0))
            case "wait":
                self._faults -= 1
                self._world.now += whose
            case "land":
                self._land(self._late.pop(whose))
            case _:
                self._step(self._workers[whose], how)
        self._check_records()

    def _start(self, event_id: str) -> Worker:
        source = Source(pushed=True, message_id="77")
        event = Event(
            id=event_id,
            type="user.created",
            project="acme",
            text=b"{}",
            tags=(),
            payload_sha256="0" * 64,
            source=source,
        )
        clock = [0.0]

        async def sleep(seconds: float) -> None:
            clock[0] += seconds
            await call(Op("sleep", event_id, seconds))

        pacer = ModelPacer(self._scenario.turns, self._scenario.waits)
        delivery = Delivery(
            ledger=self._scenario.ledger(self._world),
            sender=self._scenario.sender(),
            pacer=cast("Pacer", pacer),
            waits=Waits(lambda: clock[0], sleep, lambda _low, _high: PAUSES_LENGTHENED),
        )
        worker = Worker(event_id, delivery.deliver(event, 0.0, BUDGET), clock)
        self._workers.append(worker)
        self._resume(worker, None)
        return worker

    def _step(self, worker: Worker, fault: str) -> None:
        op = worker.waits_for
        assert op is not None
        self._faults -= bool(fault)
        match fault:
            case "crash before":
                self._crash(worker)
            case "crash after":
                self._land(op)
                self._crash(worker)
            case "cancelled":
                self._resume(worker, None, asyncio.CancelledError())
            case "fails":
                self._resume(worker, None, failed())
            case "times out but lands":
                self._land(op)
                self._resume(worker, None, failed())
            case "lands later":
                self._late.append(op)
                self._resume(worker, None, failed())
            case "turned away":
                self._resume(worker, None, NoTurn(Outcome.RATE_LIMITED, 1.0, "no turn"))
            case "superseded":
                self._resume(worker, value=True)
            case "":
                self._perform(worker, op)
            case _:
                self._answer(worker, op, fault)

    def _answer(self, worker: Worker, op: Op, fault: str) -> None:
        """Svix gives a faulty answer, or none."""
        answer = (ASK_FAULTS if op.name == "find" else SEND_FAULTS)[fault]
        if fault in LANDING:
            landed = self._world.send(op.event, queued=fault != "unqueued")
            if fault == "broken off" and landed != OK:
                answer = landed  # only a 2xx can break off
        if fault == "hangs":
            worker.clock[0] += HANGS_SECONDS
            worker.race_ends_at = worker.clock[0] + RACE_SECONDS
        self._resume(worker, answer)

    def _perform(self, worker: Worker, op: Op) -> None:
        try:
            result = self._world.perform(op)
        except Exception as refusal:  # noqa: BLE001 - every exception is passed to the worker
            self._resume(worker, None, refusal)
        else:
            self._resume(worker, result)

    def _land(self, op: Op) -> None:
        """The operation takes effect or is refused, and the worker does not learn which."""
        with contextlib.suppress(Exception):
            self._world.perform(op)

    def _crash(self, worker: Worker) -> None:
        # Its coroutine is closed only after all checks, because a dead process runs no handler.
        worker.acked = False
        worker.history.append("crashed")

    def _resume(
        self, worker: Worker, value: Any = None, failure: BaseException | None = None
    ) -> None:
        worker.history.append(repr(failure) if failure else repr(value))
        try:
            if failure is not None:
                worker.waits_for = worker.coroutine.throw(failure)
            else:
                worker.waits_for = worker.coroutine.send(value)
        except StopIteration as end:
            result: Result = end.value
            worker.acked = result.status == 200
            if worker.acked:
                self._acknowledge(worker.event)
        except asyncio.CancelledError:
            worker.acked = False

    def _acknowledge(self, event: str) -> None:
        self._acked.add(event)
        if event not in self._world.parked and not self._sent(event):
            self._violated(f"{event} was acknowledged, and is neither in Svix nor parked")

    # -- the end

    def _heal(self, event: str) -> None:
        """Redeliver without faults until the event is acknowledged, and once more."""
        for number in range(HEALING):
            is_over = event in self._acked
            # The first and the last redelivery may come at any time. Between them, leases end.
            is_free = number == 0 or is_over
            wait = LATER[self._choose(len(LATER), ("heal", event))] if is_free else LEASE + 10
            self._world.now += wait
            self._story.append(f"redelivery of {event} after {wait:g} s")
            worker = self._start(event)
            while worker.acked is None:
                self._step(worker, "")
            if is_over:
                return
        self._violated(f"{event} is not delivered although nothing fails any more")

    def _check(self) -> None:
        for event in set(self._scenario.deliveries):
            if self._sent(event) > 1:
                self._violated(f"{event} is in Svix {self._sent(event)} times")
        self._check_records()
        for worker in self._workers:
            worker.coroutine.close()

    def _check_records(self) -> None:
        """Check the records of acknowledged events, and the events that are parked.

        An acknowledged event stays recorded as delivered. None is recorded as queued if Svix will
        never send it. None is parked for a conflict that would have passed.
        """
        for event in self._acked - self._world.parked:
            row = self._world.rows[event]
            if row.state != "delivered":
                self._violated(f"{event} was acknowledged, and its record says {row.state}")
            if self._world.is_confirmed_wrongly(event):
                self._violated(f"{event} is recorded as queued, and Svix will never send it")
        if self._world.parked_as_conflict and not self._world.ids_are_taken:
            self._violated("an event was parked for a conflict that would have passed")

    def _sent(self, event: str) -> int:
        return sum(sent == event for sent, *_ in self._world.messages)

    def _violated(self, what: str) -> None:
        raise Violation(what + "\n" + "\n".join(self._story))
