"""Servers start, or an error says why not. Afterwards they and their children are gone."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from local.processes import ServerFailed, free_port, listening, running
from tests.harness.processes import gone

ROOT = Path(__file__).parent.parent.parent
STAY = "import time; print('up as', 7, flush=True); time.sleep(600)"

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
time.sleep(600)
"""


def python(program: str) -> list[str]:
    """A command that runs this program."""
    return [sys.executable, "-c", program]


def test_a_server_is_ready_when_its_line_comes() -> None:
    """`ready_line` is that line. At the end of the block the server is stopped."""
    with running(python(STAY), ready=r"up as \d") as server:
        assert server.ready_line == "up as 7"
        assert server.process.poll() is None
    assert server.process.returncode == -signal.SIGTERM


def test_a_server_is_ready_when_it_accepts_connections() -> None:
    """Some servers print no line."""
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with running(command, ready=listening(port)):
        assert listening(port)()
    assert not listening(port)()


def test_a_server_that_ends_early_is_quoted() -> None:
    """The error quotes its output, which says what is wrong."""
    with (
        pytest.raises(ServerFailed, match=r"(?s)exit code 3 .*port 80 is taken"),
        running(python("import sys; print('port 80 is taken'); sys.exit(3)"), ready="never"),
    ):
        pass


def test_a_server_that_is_never_ready_is_given_up_and_stopped() -> None:
    """It is stopped at the time limit, and the error quotes its output."""
    with (
        pytest.raises(ServerFailed, match=r"(?s)not ready within 1 s.*pid \d+") as failure,
        running(python(f"import os; print('pid', os.getpid()); {STAY}"), ready="never", limit=1),
    ):
        pass
    found = re.search(r"pid (\d+)\n", str(failure.value))
    assert found
    assert gone(int(found[1]))


def test_a_command_that_does_not_exist_is_named() -> None:
    """The error is a sentence, not a traceback of the standard library."""
    with (
        pytest.raises(ServerFailed, match="no-such-program could not be started"),
        running(["no-such-program"], ready="never"),
    ):
        pass


@pytest.mark.parametrize("suspended", [False, True])
def test_a_server_that_will_not_end_is_killed_with_its_children(*, suspended: bool) -> None:
    """No process is left that holds a port or a file."""
    with running(python(STUBBORN), ready=r"child \d+", grace=0.2) as server:
        child = int(server.ready_line.split()[1])
        if suspended:
            server.send_signal(signal.SIGSTOP)
    assert server.process.returncode == -signal.SIGKILL
    assert gone(child)


def test_a_server_may_die_before_the_end_of_the_block() -> None:
    """A test may kill it. The end of the block then does nothing."""
    with running(python(STAY), ready="up") as server:
        os.kill(server.pid, signal.SIGKILL)
        server.process.wait()
    assert server.process.returncode == -signal.SIGKILL


INTERRUPTED_PARENT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
from local.processes import running
program = "import time; print('up', flush=True); time.sleep(600)"
with running([sys.executable, "-c", program], ready="up") as server:
    server.send_signal(signal.SIGINT)
    print(server.process.wait(), server.process.args[-1] == program)
"""


def test_a_server_ends_on_sigint_even_if_its_parent_ignores_it() -> None:
    """Suites that a script starts with `&` ignore SIGINT, and their child processes inherit it."""
    ended = subprocess.run(  # noqa: S603 - this Python, a program from above
        python(INTERRUPTED_PARENT), cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert ended.stdout == f"{-signal.SIGINT} True\n"
