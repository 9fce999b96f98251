"""The process dies exactly where it hurts: the redelivery heals it, and Svix has one message."""

import asyncio
import uuid
from pathlib import Path

import httpx
import pytest

from tests.function import JSON, ROOT, event, function, simulator

KILLABLE = ROOT / "tests" / "chaos" / "killable.py"


@pytest.fixture(params=["sqlite", "firestore"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The settings of either ledger."""
    if request.param == "sqlite":
        return {"LEDGER": f"sqlite:{tmp_path}/ledger.db"}
    address: str = request.getfixturevalue("firestore_emulator")
    project = f"test-{uuid.uuid4().hex[:12]}"
    return {"FIRESTORE_EMULATOR_HOST": address, "GOOGLE_CLOUD_PROJECT": project}


@pytest.mark.parametrize(
    ("point", "at_death", "in_the_end"),
    [
        ("after_claim", 0, "delivered"),
        ("after_send", 1, "delivered"),
        ("before_answer", 1, "duplicate"),
    ],
)
async def test_a_worker_that_dies_is_made_good(
    tmp_path: Path, ledger: dict[str, str], point: str, at_death: int, in_the_end: str
) -> None:
    """No answer, then a redelivery once the lease is over: one message, acknowledged."""
    kill_point = tmp_path / "kill-point"
    kill_point.write_text(point)
    seam = {"KILL_POINT": str(kill_point), "LEASE_SECONDS": "1.5", "PYTHONPATH": str(ROOT)}
    with simulator() as svix, function(svix.url, KILLABLE, **ledger, **seam) as relay:
        async with httpx.AsyncClient(timeout=60) as client, asyncio.timeout(60):

            async def post() -> httpx.Response:
                return await client.post(
                    relay.notifications, json=event("evt_killed"), headers=JSON
                )

            with pytest.raises(httpx.RemoteProtocolError):
                await post()
            assert kill_point.read_text() == ""
            assert svix.control.summary()["messages"] == at_death
            while (answer := await post()).status_code == 409:
                pass  # the lease of the dead is what is waited for
            assert (answer.status_code, answer.json()["outcome"]) == (200, in_the_end)
        assert svix.control.summary()["messages"] == 1
        lines = relay.lines()
    assert lines[-1]["attempts"] == (1 if point == "before_answer" else 2)
