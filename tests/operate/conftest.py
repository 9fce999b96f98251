"""The operator's commands as real processes, with either ledger and the Svix simulator."""

import asyncio
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from relay.config import Settings
from relay.delivery import Delivery
from relay.envelope import read
from relay.ledger import Archive
from relay.pacing import Pacer
from relay.worker import ledger_opener, svix_sender
from tests.function import ROOT, TOKEN, Svix, simulator


@pytest.fixture
def svix() -> Iterator[Svix]:
    """A simulator."""
    with simulator() as running:
        yield running


@pytest.fixture(params=["firestore", "sqlite"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The settings of a ledger of the test's own."""
    if request.param == "sqlite":
        return {"LEDGER": f"sqlite:{tmp_path / 'ledger.db'}"}
    address = request.getfixturevalue("firestore_emulator")
    project = f"test-{uuid.uuid4().hex[:12]}"
    return {"FIRESTORE_EMULATOR_HOST": address, "GOOGLE_CLOUD_PROJECT": project}


# Time passes for a test: what takes minutes in production is over at once.
_AT_ONCE = """
from datetime import timedelta
from relay.config import Settings
from relay.operate import commands, reconciliation
Settings.lease = property(lambda self: 0.0)
reconciliation._LAST_REDELIVERY = timedelta(0)
commands.main()
"""


@dataclass(frozen=True, slots=True)
class Command:
    """Runs `python -m relay`."""

    settings: dict[str, str]

    def __call__(
        self, *arguments: str, hurried: bool = False, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Its end; `hurried`: leases and redeliveries are over at once."""
        process = self.start(*arguments, hurried=hurried, **environment)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def start(
        self, *arguments: str, hurried: bool = False, **environment: str
    ) -> subprocess.Popen[str]:
        """The process, while it runs."""
        how = ["-c", _AT_ONCE] if hurried else ["-m", "relay"]
        return subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, *how, *arguments],
            env=os.environ | self.settings | environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def relay(svix: Svix, ledger: dict[str, str]) -> Command:
    """The commands, with the settings of the function."""
    return Command({"SVIX_TOKEN": TOKEN, "SVIX_SERVER_URL": svix.url, **ledger})


Within = Callable[[Archive, "Deliver"], Awaitable[None]]
Deliver = Callable[[list[bytes]], Awaitable[None]]
Prepare = Callable[[Within], None]


@pytest.fixture
def prepare(relay: Command, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """Brings the ledger into a state: hands the archive in, and a way to deliver many pushes."""

    def run(within: Within) -> None:
        for name, value in relay.settings.items():
            monkeypatch.setenv(name, value)
        settings = Settings.from_environment(relay.settings)
        asyncio.run(_within(settings, within))

    return run


async def _within(settings: Settings, within: Within) -> None:
    archive = ledger_opener(settings)()
    sender = svix_sender(settings)
    delivery = Delivery(ledger=archive, sender=sender, pacer=Pacer(), clock=time.monotonic)
    at_once = asyncio.Semaphore(32)

    async def one(body: bytes) -> None:
        async with at_once:
            await delivery.deliver(read(body, {}), time.monotonic() + 60)

    async def deliver(bodies: list[bytes]) -> None:
        await asyncio.gather(*map(one, bodies))

    try:
        await within(archive, deliver)
    finally:
        await sender.close()
        await archive.close()
