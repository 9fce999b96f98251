"""The process dies at the critical points. The redelivery continues, and Svix has one message."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.function import (
    JSON,
    ROOT,
    Function,
    Svix,
    event,
    function,
    new_google_project,
    simulator,
)

KILLABLE = ROOT / "tests" / "chaos" / "killable.py"


@dataclass(frozen=True, slots=True)
class Killable:
    """A function whose worker dies at the point named in a file. Its master starts another one."""

    relay: Function
    svix: Svix
    kill_point: Path


@contextmanager
def killable(folder: Path, **ledger: str) -> Iterator[Killable]:
    """Start a killable function, with this ledger and a short lease."""
    kill_point = folder / "kill-point"
    kill_point.touch()
    seam = {"KILL_POINT": str(kill_point), "LEASE_SECONDS": "1.5", "PYTHONPATH": str(ROOT)}
    with simulator() as svix, function(svix.url, KILLABLE, **ledger, **seam) as relay:
        yield Killable(relay, svix, kill_point)


@pytest.fixture(scope="module", params=["sqlite", "firestore"])
def function_with_ledger(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Killable]:
    """A killable function for each ledger."""
    folder = tmp_path_factory.mktemp("ledger")
    ledger = {"LEDGER": f"sqlite:{folder}/ledger.db"}
    if request.param == "firestore":
        address: str = request.getfixturevalue("firestore_emulator")
        ledger = {"FIRESTORE_EMULATOR_HOST": address, "GOOGLE_CLOUD_PROJECT": new_google_project()}
    with killable(folder, **ledger) as started:
        yield started


@pytest.mark.parametrize(
    ("point", "at_death", "in_the_end"),
    [
        ("after_claim", 0, "delivered"),
        ("after_send", 1, "delivered"),
        ("before_answer", 1, "duplicate"),
    ],
)
async def test_after_a_kill_the_redelivery_succeeds(
    function_with_ledger: Killable, point: str, at_death: int, in_the_end: str
) -> None:
    """The first push gets no answer. The redelivery is acknowledged, and Svix has one message."""
    relay, svix = function_with_ledger.relay, function_with_ledger.svix
    svix.control.reset()
    function_with_ledger.kill_point.write_text(point)
    async with httpx.AsyncClient(timeout=60) as client, asyncio.timeout(60):

        async def post() -> httpx.Response:
            body = event(f"evt_killed_{point}")
            return await client.post(relay.notifications, json=body, headers=JSON)

        with pytest.raises(httpx.RemoteProtocolError):
            await post()
        assert function_with_ledger.kill_point.read_text() == ""
        assert svix.control.summary()["messages"] == at_death
        answer = await post()  # finds the dead worker's claim, and waits until its lease ends
        assert (answer.status_code, answer.json()["outcome"]) == (200, in_the_end)
    assert svix.control.summary()["messages"] == 1
    attempts = relay.lines()[-1]["attempts"]
    assert attempts == (1 if point == "before_answer" else 2)
