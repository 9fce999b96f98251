"""The operator's commands, called in this process, with the Svix simulator in a thread."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from local.conduct import Fault
from local.simulator import Simulator
from local.svix import wire
from local.svix.store import Endpoint, StoredMessage
from relay.operate.svix import Pace, SvixView
from tests.function import TOKEN


class Svix:
    """A simulator that runs in a thread, so that commands may have an event loop of their own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.simulator = Simulator(TOKEN)
        self.run(self.simulator.__aenter__())
        self.url = self.simulator.url

    def run(self, awaitable: object) -> object:
        """Await something in the simulator's loop."""
        return asyncio.run_coroutine_threadsafe(awaitable, self.loop).result(30)  # type: ignore[arg-type] # whatever a coroutine returns

    def close(self) -> None:
        """Stop it."""
        self.run(self.simulator.__aexit__())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def reset(self) -> None:
        """As new."""
        self._call(self.simulator.reset)
        self.simulator.conduct = replace(Simulator(TOKEN).conduct)

    def inject(self, kind: str, **details: object) -> None:
        """Let something go wrong with questions, unless `details` say otherwise."""
        fault = Fault(kind, **{"method": "GET", "body": "json", **details})  # type: ignore[arg-type] # the fields of Fault
        self._call(self.simulator.inject, fault)

    def clear_faults(self) -> None:
        """Let nothing go wrong any more."""
        self._call(self.simulator.clear_faults)

    def add_message(
        self,
        event_id: str | None,
        *,
        project: str = "acme",
        age: timedelta = timedelta(0),
        event_type: str = "user.created",
    ) -> StoredMessage:
        """A message that Svix accepted so long ago, and sends to nobody."""
        store, now = self.simulator.store, datetime.now(UTC) - age
        new = wire.NewMessage(
            event_id=event_id,
            event_type=event_type,
            text="{}",
            channels=None,
            tags=(),
            application=None,
        )
        application = store.find_application(project) or store.create_application(
            project, project, now
        )
        return store.add_message(application, new, for_ever=False, now=now)

    def add_endpoint(
        self, url: str, *, project: str = "acme", age: timedelta = timedelta(days=1)
    ) -> Endpoint:
        """An endpoint that was created so long ago."""
        store, created_at = self.simulator.store, datetime.now(UTC) - age
        application = store.find_application(project) or store.create_application(
            project, project, created_at
        )
        endpoint = Endpoint(f"ep_{len(application.endpoints)}", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD", created_at, url)
        application.endpoints[endpoint.id] = endpoint
        return endpoint

    @property
    def paths(self) -> list[str]:
        """What was asked so far, without the queries."""
        return [f"{call.method} {call.path.partition('?')[0]}" for call in self.simulator.calls]

    def _call(self, function: object, *arguments: object) -> None:
        async def within() -> None:
            function(*arguments)  # type: ignore[operator] # a method of the simulator

        self.run(within())


@pytest.fixture(scope="module")
def running_svix() -> Iterator[Svix]:
    """The module's simulator."""
    running = Svix()
    try:
        yield running
    finally:
        running.close()


@pytest.fixture
def svix(running_svix: Svix) -> Svix:
    """The simulator, as new."""
    running_svix.reset()
    return running_svix


@pytest.fixture
async def view(svix: Svix) -> AsyncIterator[SvixView]:
    """A view of it that waits for nothing."""
    async with SvixView(TOKEN, svix.url, Pace(10_000), patience=0) as view:
        yield view
