"""`python -m relay reconcile`: was everything sent?"""

import json
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest

from relay.envelope import read
from relay.ledger import Archive, Claim, State, key_of
from relay.sender import SvixSender
from tests.function import TOKEN, Svix, event
from tests.operate.conftest import Command, Deliver, Prepare


def body(event_id: str) -> bytes:
    """An event posted by hand."""
    return json.dumps(event(event_id)).encode()


async def claim(archive: Archive, event_id: str) -> Claim:
    """Claim an event, as a delivery that is about to die."""
    claimed = await archive.claim(read(body(event_id), {}))
    assert isinstance(claimed, Claim)
    return claimed


def found(relay: Command, *arguments: str, status: int) -> dict[str, Any]:
    """What `--json` says."""
    run = relay("reconcile", "--since", "24h", "--json", *arguments, hurried=True)
    assert run.returncode == status, run.stdout + run.stderr
    return dict(json.loads(run.stdout))


@pytest.fixture
def disorder(relay: Command, svix: Svix, prepare: Prepare) -> int:
    """Thousands of events as they should be, and a few of each kind that are not."""
    many = 3_000 if "FIRESTORE_EMULATOR_HOST" in relay.settings else 600

    async def lost(_: Archive, deliver: Deliver) -> None:
        await deliver([body(f"missing_{n}") for n in range(7)])

    async def disordered(archive: Archive, deliver: Deliver) -> None:
        await deliver([body(f"evt_{n}") for n in range(many)])
        sender = SvixSender(TOKEN, svix.url, create_applications=True)
        for n in range(3):
            await claim(archive, f"abandoned_{n}")
            await claim(archive, f"unsettled_{n}")
            await archive.release(await claim(archive, f"unsent_{n}"))
            for name in (f"unsettled_{n}", f"extra_{n}"):
                await sender.send(read(body(name), {}), key_of("acme", name))
        await sender.close()

    prepare(lost)
    svix.control.reset()
    svix.control.conduct(clock_offset=-600)  # accepted ten minutes ago
    prepare(disordered)
    svix.control.conduct(clock_offset=0)
    return many


def test_each_kind_is_found_and_mended(
    relay: Command, svix: Svix, prepare: Prepare, disorder: int
) -> None:
    expected = {
        "missing": 7, "abandoned": 3, "unsent": 3, "parked": 0,
        "unsettled": 3, "extra": 3, "unattempted": 0,
    }  # fmt: skip
    told = found(relay, status=1)
    assert told["found"] == expected
    assert (told["records"], told["messages"]) == (disorder + 16, disorder + 6)
    assert len(told["examples"]["missing"]) == 5
    assert told["mended"] == 0

    assert found(relay, "--fix", status=1)["mended"] == 13

    async def mended(archive: Archive, deliver: Deliver) -> None:
        for name, state in (
            ("missing_1", State.RELEASED),
            ("abandoned_1", State.RELEASED),
            ("unsettled_1", State.DELIVERED),
        ):
            record = await archive.record(key_of("acme", name))
            assert record is not None
            assert record.state is state, name
        lost = ("missing", 7), ("abandoned", 3), ("unsent", 3)
        await deliver([body(f"{name}_{n}") for name, count in lost for n in range(count)])

    prepare(mended)
    assert svix.control.summary()["doubles"] == []
    told = found(relay, status=0)
    assert {kind: count for kind, count in told["found"].items() if count} == {"extra": 3}


def test_messages_that_no_endpoint_was_tried_with(
    relay: Command, svix: Svix, prepare: Prepare
) -> None:
    async def within(_: Archive, deliver: Deliver) -> None:
        await deliver([body(f"evt_{n}") for n in range(600)])

    svix.control.conduct(clock_offset=-600)
    prepare(within)
    url = "https://customer.example/hook"
    deaf = {"url": url, "attempted": False}
    for endpoint, count in (
        ({"id": "ep_1", "url": url}, 0),
        ({"id": "ep_1", **deaf}, 600),
        ({"id": "ep_1", **deaf, "disabled": True}, 0),
        ({"id": "ep_1", **deaf, "channels": ["other"]}, 0),
        ({"id": "ep_1", **deaf, "eventTypes": ["sim.activated"]}, 0),
        ({"id": "ep_1", **deaf, "eventTypes": ["user.created"]}, 600),
    ):
        svix.control.endpoints("acme", [endpoint])
        told = found(relay, status=1 if count else 0)
        assert told["found"]["unattempted"] == count, endpoint


def test_what_is_told(relay: Command, prepare: Prepare) -> None:
    async def within(archive: Archive, deliver: Deliver) -> None:
        await deliver([body("evt_1")])
        await claim(archive, "evt_2")

    prepare(within)
    run = relay("reconcile", "--since", "24h")
    assert run.returncode == 0, run.stderr  # the claim may still be at work
    assert run.stdout.endswith("Everything was sent.\n")
    run = relay("reconcile", "--since", "24h", hurried=True)
    assert run.returncode == 1
    assert "evt_2 of acme" in run.stdout
    assert max(map(len, run.stdout.splitlines())) <= 80
    assert "Ledger" in run.stderr


def test_svix_that_refuses(relay: Command, svix: Svix) -> None:
    svix.control.inject("status", status=429, body="json", times=2, method="GET")
    assert relay("reconcile", "--since", "24h").returncode == 0  # waited out
    run = relay("reconcile", "--since", "24h", SVIX_TOKEN="testsk_wrong")
    assert run.returncode == 3
    assert "check SVIX_TOKEN" in run.stderr
    assert "Traceback" not in run.stderr
    assert relay("reconcile", "--since", "soon").returncode == 2


def test_interrupted_it_leaves_nothing_behind(
    relay: Command, svix: Svix, prepare: Prepare, tmp_path: Path
) -> None:
    async def within(_: Archive, deliver: Deliver) -> None:
        await deliver([body("evt_1")])

    prepare(within)
    svix.control.inject("hang", method="GET")
    folder = tempfile.mkdtemp(dir=tmp_path)
    process = relay.start("reconcile", "--since", "24h", TMPDIR=folder)
    assert process.stderr is not None
    while "Ledger" not in (line := process.stderr.readline()):
        assert line, "it ended before it was interrupted"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert list(Path(folder).iterdir()) == []
