"""Fails a run in which a test leaves a process, a port or a file behind.

A process is found by its environment, which it inherits from the test that started it and which
names that test. Ports on which the test process itself still listens are checked after a module's
last test. Files and processes are checked at the end of the run, and the processes are killed.
"""

import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import psutil
import pytest

from tests.harness import is_controller
from tests.harness.scratch import VARIABLE, scratch, temporary

ROOT = Path(__file__).parent.parent.parent
_TEST = "PYTEST_CURRENT_TEST"  # pytest sets it while a test runs
_SHOWN = 200  # characters of a command


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None]:
    """Check for open ports after a module's last test and after its fixtures are closed."""
    yield
    is_last = nextitem is None or nextitem.path != item.path
    if is_last and (ports := sorted(_listening(psutil.Process()))):
        pytest.fail(f"{item.path.name} left open port {', '.join(ports)}", pytrace=False)


def _listening(process: psutil.Process) -> Iterator[str]:
    """The TCP addresses on which a process listens."""
    for connection in process.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN:
            yield f"{connection.laddr.ip}:{connection.laddr.port}"


class _Plugin:
    """Compares the end of the run with its start, in the controller."""

    def __init__(self) -> None:
        self._files = _files()
        self._left: list[str] = []

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None]:
        """Check after the workers and the emulators have ended, and before the summary."""
        yield
        self._left += _kill_processes()
        self._left += [f"file {path} in the repository" for path in sorted(_files() - self._files)]
        self._left += [f"file {path}" for path in sorted(temporary().iterdir())]
        if self._left and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """List what was left behind."""
        if self._left:
            terminalreporter.section("LEFT BEHIND", red=True)
            for line in self._left:
                terminalreporter.line(line, red=True)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Remember the files. Let SIGTERM end the run as Ctrl-C does, so that everything is stopped."""
    if is_controller(session.config):
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        session.config.pluginmanager.register(_Plugin(), "leftovers")


def _files() -> set[str]:
    """The files in the repository, without the tools' own (caches and the like)."""
    found: set[str] = set()
    for directory, folders, files in os.walk(ROOT):
        folders[:] = [f for f in folders if not f.startswith(".") and f != "__pycache__"]
        found |= {str(Path(directory, file).relative_to(ROOT)) for file in files}
    return found


def _kill_processes() -> Iterator[str]:
    """Kill each process that a test of this run left behind. Yields a description of each."""
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            if environment.get(VARIABLE) != str(scratch()) or _TEST not in environment:
                continue
            ports = "".join(f", listening on {address}" for address in _listening(process))
            command = " ".join(" ".join(process.cmdline()).split())[:_SHOWN]
            words = f"process {process.pid} ({command}{ports})"
            process.kill()
        except psutil.Error:
            continue  # it has ended, or belongs to another user
        yield f"{words}, started in {environment[_TEST]}"
