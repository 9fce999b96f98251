"""`python -m relay dead-letters`: what was parked, looked at, sent again, given up."""

import json
import signal
import subprocess
import time
from typing import Any

import pytest

from relay.ledger import Archive, State
from tests.function import TOKEN, Svix, event, wrapped
from tests.operate.conftest import Command, Deliver, Prepare

SECRET = "hush-1"


def push(number: int, **more: Any) -> bytes:
    """A push of an event of its own."""
    body = json.dumps(event(f"evt_{number}", data={"secret": SECRET}, **more)).encode()
    return wrapped(body, str(number))


@pytest.fixture
def park(svix: Svix, prepare: Prepare) -> Any:
    """Parks pushes: Svix refuses them."""

    def park(*pushes: bytes, kind: str = "status") -> None:
        svix.control.inject(kind, status=413, body="json")

        async def within(_: Archive, deliver: Deliver) -> None:
            await deliver(list(pushes))

        prepare(within)
        svix.control.clear_faults()

    return park


def listed(relay: Command, *filters: str) -> list[dict[str, Any]]:
    """What `list --json` says."""
    run = relay("dead-letters", "list", "--json", *filters)
    assert run.returncode == 0, run.stderr
    return list(json.loads(run.stdout))


def test_list_and_its_filters(relay: Command, park: Any) -> None:
    park(push(1), push(2, project="globex"), push(3, type="sim.activated"))
    assert {letter["event_id"] for letter in listed(relay)} == {"evt_1", "evt_2", "evt_3"}
    assert [letter["event_id"] for letter in listed(relay, "--project", "globex")] == ["evt_2"]
    assert [letter["event_id"] for letter in listed(relay, "--type", "sim.activated")] == ["evt_3"]
    assert len(listed(relay, "--reason", "413", "--since", "1h")) == 3
    assert listed(relay, "--reason", "malformed") == []
    assert listed(relay, "--since", "2999-01-01") == []
    run = relay("dead-letters", "list")
    assert "rejected: Svix: 413" in run.stdout
    assert run.stdout.endswith("3 dead letter(s)\n")
    assert max(map(len, run.stdout.splitlines())) <= 80
    assert SECRET not in run.stdout


def test_show_has_the_payload_only_where_it_is_asked_for(relay: Command, park: Any) -> None:
    park(push(1))
    beginning = listed(relay)[0]["id"][:12]
    run = relay("dead-letters", "show", beginning)
    assert (run.returncode, SECRET in run.stdout) == (0, False), run.stderr
    assert "rejected: Svix: 413" in run.stdout
    run = relay("dead-letters", "show", beginning, "--payload", "--json")
    assert json.loads(json.loads(run.stdout)["payload"])["data"] == {"secret": SECRET}


@pytest.mark.parametrize("letter_id", ["abc", "../events/x", ""])
def test_an_id_that_is_none(relay: Command, letter_id: str) -> None:
    run = relay("dead-letters", "show", letter_id)
    assert run.returncode == 2
    assert "list" in run.stderr


def test_discard_keeps_what_it_was_and_not_its_bytes(
    relay: Command, park: Any, prepare: Prepare
) -> None:
    park(push(1), push(2))
    given_up = next(letter["id"] for letter in listed(relay) if letter["event_id"] == "evt_1")
    assert relay("dead-letters", "discard", given_up[:10]).returncode == 2
    run = relay("dead-letters", "discard", given_up[:10], "--reason", "a test event")
    assert run.returncode == 0, run.stderr
    assert [letter["event_id"] for letter in listed(relay)] == ["evt_2"]
    found = relay("inspect", "evt_1", "--project", "acme", "--json")
    assert json.loads(found.stdout)["place"] == "discarded"

    async def within(archive: Archive, _: Deliver) -> None:
        letter = await archive.dead_letter(given_up)
        assert letter is not None
        assert (letter.data, letter.event_id, letter.discarded) == (b"", "evt_1", "a test event")

    prepare(within)


def test_replay_sends_what_is_parked_and_removes_it(relay: Command, svix: Svix, park: Any) -> None:
    park(*map(push, range(5)))
    first = listed(relay)[0]["id"]
    run = relay("dead-letters", "replay", first[:12])
    assert (run.returncode, svix.control.summary()["messages"]) == (0, 1), run.stderr
    run = relay("dead-letters", "replay", "--all", "--json")
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    assert [each["outcome"] for each in told["replayed"].values()] == ["delivered"] * 4
    assert listed(relay) == []
    summary = svix.control.summary()
    assert (summary["messages"], summary["doubles"]) == (5, [])
    run = relay("dead-letters", "replay", "--all")
    assert (run.returncode, run.stdout) == (0, "Nothing to replay.\n")


def test_replay_asks_svix_before_it_sends(relay: Command, svix: Svix, park: Any) -> None:
    park(push(1), kind="store_then_status")
    svix.control.conduct(clock_offset=100 * 3600)  # Svix has forgotten id and key
    before = [call["method"] for call in svix.control.calls()]
    run = relay("dead-letters", "replay", "--all")
    assert run.returncode == 0, run.stderr
    after = [call["method"] for call in svix.control.calls()][len(before) :]
    assert (after, svix.control.summary()["messages"]) == (["GET"], 1)


def test_replay_of_what_was_delivered_since_sends_nothing(
    relay: Command, svix: Svix, park: Any, prepare: Prepare
) -> None:
    park(push(1))

    async def within(_: Archive, deliver: Deliver) -> None:
        await deliver([push(1)])

    prepare(within)
    calls = len(svix.control.calls())
    run = relay("dead-letters", "replay", "--all")
    assert run.returncode == 0, run.stderr
    assert "duplicate" in run.stdout
    assert (len(svix.control.calls()), listed(relay)) == (calls, [])


def test_what_svix_refuses_again_stays_with_its_new_reason(
    relay: Command, svix: Svix, park: Any
) -> None:
    park(push(1), push(2))
    svix.control.inject("status", status=422, body="json", method="POST")
    run = relay("dead-letters", "replay", "--all")
    assert run.returncode == 1, run.stderr
    assert [letter["svix_status"] for letter in listed(relay)] == [422, 422]
    assert SECRET not in run.stdout + run.stderr


def test_a_replay_that_svix_does_not_let_in_stops(relay: Command, svix: Svix, park: Any) -> None:
    park(*map(push, range(40)))
    calls = len(svix.control.calls())
    run = relay("dead-letters", "replay", "--all", SVIX_TOKEN="testsk_wrong")
    assert run.returncode == 1, run.stderr
    assert "misconfigured" in run.stdout
    assert "not replayed" in run.stdout
    assert len(svix.control.calls()) - calls < 40
    assert "testsk_wrong" not in run.stdout + run.stderr
    assert [letter["reason"] for letter in listed(relay)] == ["rejected"] * 40


def test_replay_wants_names_or_all(relay: Command) -> None:
    assert relay("dead-letters", "replay").returncode == 2
    assert relay("dead-letters", "replay", "abc", "--all").returncode == 2
    assert relay("dead-letters", "replay", "abc", "--project", "acme").returncode == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_replay_that_is_interrupted_and_run_again(
    relay: Command, svix: Svix, park: Any, prepare: Prepare, number: signal.Signals
) -> None:
    many = 2_000 if "FIRESTORE_EMULATOR_HOST" in relay.settings else 300
    park(*map(push, range(many)))
    svix.control.conduct(latency=0.02)
    process = relay.start("dead-letters", "replay", "--all")
    await_messages(svix, many // 10, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "not replayed" in out
    sent = svix.control.summary()["messages"]
    assert many // 10 <= sent < many

    async def no_claim_is_held(archive: Archive, _: Deliver) -> None:
        states = [record.state async for record in archive.records()]
        assert State.CLAIMED not in states
        assert states.count(State.DELIVERED) == sent

    prepare(no_claim_is_held)
    run = relay("dead-letters", "replay", "--all")
    assert run.returncode == 0, run.stdout + run.stderr
    summary = svix.control.summary()
    assert (summary["messages"], summary["doubles"]) == (many, [])
    assert listed(relay) == []
    assert TOKEN not in out + err + run.stdout + run.stderr


def await_messages(svix: Svix, count: int, process: subprocess.Popen[str]) -> None:
    """Until Svix has so many."""
    give_up_at = time.monotonic() + 60
    while svix.control.summary()["messages"] < count:
        assert process.poll() is None, "it ended before it was interrupted"
        assert time.monotonic() < give_up_at
        time.sleep(0.02)
