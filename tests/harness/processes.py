"""`--no-processes` skips each test that starts a process, as soon as it starts one.

`make check` uses this option. There is no list of these tests: Python reports each new process to
its audit hooks (https://docs.python.org/3/library/audit_events.html).
"""

import os
import sys
import time
from pathlib import Path

import psutil
import pytest

_EVENTS = {"subprocess.Popen", "os.posix_spawn", "os.fork", "os.exec"}
_REASON = "starts a process: `make test` runs it"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption("--no-processes", action="store_true", help="skip tests that start processes")


def pytest_configure(config: pytest.Config) -> None:
    """Install the audit hook if the option is given."""
    if config.getoption("--no-processes"):
        os.environ["NO_PROCESSES"] = "1"
        sys.addaudithook(_watch)


def _watch(event: str, _: object) -> None:
    if event in _EVENTS and "PYTEST_CURRENT_TEST" in os.environ:
        raise pytest.skip.Exception(_REASON)


def skip_if_none_may_start() -> None:
    """Skip the test if the option is given. For fixtures whose process is started elsewhere."""
    if os.environ.get("NO_PROCESSES") == "1":
        pytest.skip(_REASON)


def gone(pid: int) -> bool:
    """Whether a process has ended. Waits for it up to 10 s, because the end may take a moment."""
    give_up_at = time.monotonic() + 10
    while time.monotonic() < give_up_at:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True  # its parent has not collected its exit status yet
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


def await_stop(pid: int) -> None:
    """Wait until each thread of the process and its children is stopped, after SIGSTOP.

    On a busy machine a Java thread runs on for a moment, and still answers a new request.
    """
    leader = psutil.Process(pid)
    for process in (leader, *leader.children(recursive=True)):
        for thread in process.threads():
            stat = Path(f"/proc/{process.pid}/task/{thread.id}/stat")
            while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "T":
                time.sleep(0.01)
