"""The harness names what hangs, what is left behind, and which test left it.

Each test starts a pytest run of its own.
"""

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from local.processes import running
from tests.harness.processes import gone

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parent.parent.parent
PLUGINS = ["scratch", "limit", "processes", "leftovers", "report"]
Command = Callable[[str], list[str]]


@pytest.fixture
def command(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Writes a test module, and returns the command that runs it with the harness's plugins."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("NO_PROCESSES", raising=False)

    def write(module: str) -> list[str]:
        path = pytester.makepyfile(test_inner=module)
        plugins = [word for name in PLUGINS for word in ("-p", f"tests.harness.{name}")]
        return [sys.executable, "-m", "pytest", *plugins, str(path)]

    return write


def test_what_hangs_is_named(pytester: pytest.Pytester, command: Command) -> None:
    """An asyncio task is shown with the line where it waits, which no thread's stack has.

    A teardown that hangs is shown as well.
    """
    ended = pytester.run(
        *command(
            """
            import asyncio, pytest, threading

            @pytest.fixture
            def slow_to_end():
                yield
                threading.Event().wait()

            async def waits_for_ever():
                await asyncio.Event().wait()

            async def gathers():
                await asyncio.gather(waits_for_ever())

            @pytest.mark.time_limit(0.2)
            def test_hangs():
                asyncio.run(gathers())

            @pytest.mark.time_limit(0.2)
            def test_passes(slow_to_end):
                pass
            """
        ),
        timeout=60,
    )
    ended.assert_outcomes(passed=1, failed=1, errors=1)
    ended.stdout.fnmatch_lines(["*in slow_to_end", "*threading.Event().wait()*"])
    ended.stdout.fnmatch_lines(["still running after 0.2 s", "*await asyncio.Event().wait()*"])


LEAVES_A_SERVER = '''
import subprocess, sys

SERVER = """
import socket, time
listener = socket.create_server(("127.0.0.1", 0))
print("up", flush=True)
time.sleep(600)
"""

def start():
    command = [sys.executable, "-c", SERVER]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    server.stdout.readline()
    open("pid", "w").write(str(server.pid))

def test_leaves_a_server():
    start()
'''


def test_what_is_left_is_named_with_its_test(pytester: pytest.Pytester, command: Command) -> None:
    """The report names a process (and kills it), a port of the test process, and a file."""
    ended = pytester.run(
        *command(
            LEAVES_A_SERVER
            + """
import socket, tempfile

kept = []

def test_leaves_a_file(tmp_path):
    (tmp_path / "fine").touch()
    tempfile.mkstemp(prefix="astray-")

def test_leaves_a_port():
    kept.append(socket.create_server(("127.0.0.1", 0)))
"""
        ),
        timeout=60,
    )
    ended.assert_outcomes(passed=3, errors=1)
    address = r"127.0.0.1:\d+"
    ended.stdout.re_match_lines(
        [
            rf"test_inner.py left open port {address}",
            r".*LEFT BEHIND",
            rf"process \d+ \(.*, listening on {address}\), started in .*::test_leaves_a_server",
            r"file .*/astray-",
        ]
    )
    assert gone(int(Path("pid").read_text()))


def test_what_is_left_fails_the_run(pytester: pytest.Pytester, command: Command) -> None:
    """The run fails although every test passed."""
    ended = pytester.run(*command(LEAVES_A_SERVER), timeout=60)
    ended.assert_outcomes(passed=1)
    assert ended.ret == pytest.ExitCode.TESTS_FAILED


def test_a_run_that_leaves_nothing_passes(pytester: pytest.Pytester, command: Command) -> None:
    """A test that cleans up its process, port and file is not reported."""
    ended = pytester.run(
        *command(
            """
            import socket, subprocess, sys, tempfile

            def test_cleans_up(tmp_path):
                subprocess.run([sys.executable, "-c", ""], check=True)
                with socket.create_server(("127.0.0.1", 0)), tempfile.TemporaryDirectory():
                    pass
            """
        ),
        timeout=60,
    )
    ended.assert_outcomes(passed=1)
    assert ended.ret == pytest.ExitCode.OK
    ended.stdout.fnmatch_lines(["*seconds of each suite*"])


def test_a_run_that_is_told_to_end_leaves_nothing(command: Command) -> None:
    """CI cancels a job with SIGTERM. A process that a script starts with `&` ignores SIGINT."""
    module = (
        LEAVES_A_SERVER + "    print('left', flush=True)\n    import time\n    time.sleep(600)\n"
    )
    with running([*command(module), "--capture=no"], ready="left") as run:
        run.process.send_signal(signal.SIGTERM)
        assert run.process.wait(30) == pytest.ExitCode.INTERRUPTED
    assert gone(int(Path("pid").read_text()))


def test_without_processes_a_test_that_starts_one_is_skipped(
    pytester: pytest.Pytester, command: Command
) -> None:
    """Only such tests are skipped, even if it is a fixture that starts the process."""
    ended = pytester.run(
        *command(
            """
            import pytest, subprocess, sys

            @pytest.fixture
            def server():
                with subprocess.Popen([sys.executable, "-c", ""]):
                    yield

            def test_starts_one():
                subprocess.run([sys.executable, "-c", ""])

            def test_has_one_started(server):
                pass

            def test_starts_none():
                pass
            """
        ),
        "--no-processes",
        timeout=60,
    )
    ended.assert_outcomes(passed=1, skipped=2)
