"""`--no-processes`: skip each test that starts a process, at the moment it does.

This is what `make check` runs with. Nobody keeps a list of which tests those are: Python reports
every new process to its audit hooks (https://docs.python.org/3/library/audit_events.html).
"""

import os
import sys
import time

import psutil
import pytest

_EVENTS = {"subprocess.Popen", "os.posix_spawn", "os.fork", "os.exec"}
_REASON = "starts a process: `make test` runs it"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option."""
    parser.addoption("--no-processes", action="store_true", help="skip tests that start processes")


def pytest_configure(config: pytest.Config) -> None:
    """Watch, where the option is given."""
    if config.getoption("--no-processes"):
        os.environ["NO_PROCESSES"] = "1"
        sys.addaudithook(_watch)


def _watch(event: str, _: object) -> None:
    if event in _EVENTS and "PYTEST_CURRENT_TEST" in os.environ:
        raise pytest.skip.Exception(_REASON)


def skip_where_none_may_start() -> None:
    """For fixtures that have a process started elsewhere."""
    if os.environ.get("NO_PROCESSES") == "1":
        pytest.skip(_REASON)


def gone(pid: int) -> bool:
    """Whether a process has ended; waits for it, as one that was killed may take a moment."""
    given_up_at = time.monotonic() + 10
    while time.monotonic() < given_up_at:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True  # whoever adopted it has not noticed yet
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False
