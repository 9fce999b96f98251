"""The operator's commands as processes: each command once, and the effect of SIGINT and SIGTERM."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

from relay.ledger import State, key_of
from tests.operate.conftest import SECRET, Relay, Rows, Svix, letter


def ended(process: subprocess.Popen[str], status: int) -> tuple[str, str]:
    """Wait until a process ends with this status. Returns its stdout and stderr."""
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, out + err
    assert "Traceback" not in err
    return out, err


def test_each_command_once(relay: Relay, svix: Svix, rows: Rows) -> None:
    """Each command runs through `relay/__main__.py` in its own process."""
    rows.add(State.DELIVERED, "evt_1")
    svix.add_message("evt_1")
    sent, given_up = letter("evt_2"), letter("evt_3")
    relay.park(sent, given_up)
    for arguments, status, words in (
        (["check"], 0, "writes, reads and deletes"),
        (["inspect", "evt_1", "--project", "acme"], 0, "in Svix"),
        (["dead-letters", "list"], 0, "2 parked, 0 discarded"),
        (["dead-letters", "show", sent.id], 0, "rejected: Svix: 413"),
        (["dead-letters", "discard", given_up.id, "--reason", "a test"], 0, "Discarded: 1."),
        (["reconcile", "--since", "24h"], 1, "1 event(s) need an operator"),
        (["dead-letters", "replay", "--all"], 0, "delivered"),
    ):
        out, err = ended(relay.start(*arguments), status)
        assert words in out
        assert SECRET not in out + err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_replay_leaves_no_claim_and_can_be_run_again(
    relay: Relay, svix: Svix, number: signal.Signals
) -> None:
    many = 200
    relay.park(*(letter(f"evt_{n}") for n in range(many)))
    svix.simulator.behaviour.latency = 0.02
    process = relay.start("dead-letters", "replay", "--all")
    await_messages(svix, many // 10, process)
    process.send_signal(number)
    out, _ = ended(process, 130)
    assert "not replayed" in out
    sent = len(svix.simulator.messages)
    assert many // 10 <= sent < many

    async def states(archive: object) -> list[State]:
        return [
            record.state
            for n in range(many)
            if (record := await archive.record(key_of("acme", f"evt_{n}")))  # type: ignore[attr-defined] # an Archive
        ]

    found = relay.within(states)
    assert State.CLAIMED not in found
    assert found.count(State.DELIVERED) == sent
    ended(relay.start("dead-letters", "replay", "--all"), 0)
    assert len(svix.simulator.messages) == many
    assert relay.letters() == []


def await_messages(svix: Svix, count: int, process: subprocess.Popen[str]) -> None:
    """Wait until Svix has this many messages."""
    give_up_at = time.monotonic() + 60
    while len(svix.simulator.messages) < count:
        assert process.poll() is None, "the process ended before it was interrupted"
        assert time.monotonic() < give_up_at
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_reconciliation_that_is_interrupted(
    relay: Relay, svix: Svix, rows: Rows, tmp_path: Path, number: signal.Signals
) -> None:
    """It says how far it got, and leaves no file behind."""
    rows.add(State.DELIVERED, "evt_1")
    relay.park(letter("evt_2"))
    svix.inject("hang")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = relay.start("reconcile", "--since", "24h", TMPDIR=str(temporary))
    assert process.stderr is not None
    while "Dead letters" not in (line := process.stderr.readline()):
        assert line, "the process ended before it was interrupted"
    process.send_signal(number)
    out, _ = ended(process, 130)
    assert "Not finished: interrupted" in out
    assert "Comparison not finished: acme." in out
    assert list(temporary.iterdir()) == []
