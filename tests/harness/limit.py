"""Limits the time of each test's setup, call and teardown.

A test that exceeds the limit fails, and the failure shows the stack of every thread and every
asyncio task. `@pytest.mark.time_limit(seconds)` sets another limit. If the alarm's signal can't
interrupt the test, pytest's own `faulthandler_timeout` ends the process and shows the stacks.
"""

import asyncio
import io
import signal
import sys
import threading
import traceback
from collections.abc import Generator
from types import FrameType

import psutil
import pytest

SECONDS = 120.0  # the slowest test takes a third of this on two busy cores
_AGAIN = 5.0  # seconds; a background task may have swallowed the first failure


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", "time_limit(seconds): replaces the usual time limit")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    """Limit the setup."""
    yield from _limited(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Limit the test."""
    yield from _limited(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    """Limit the teardown."""
    yield from _limited(item)


def _limited(item: pytest.Item) -> Generator[None]:
    marker = item.get_closest_marker("time_limit")
    seconds = float(marker.args[0]) if marker else SECONDS

    def over(_: int, frame: FrameType | None) -> None:
        pytest.fail(f"still running after {seconds:g} s\n{_where(frame)}", pytrace=False)

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _where(frame: FrameType | None) -> str:
    """The stacks of the threads and tasks, and the child processes' commands."""
    text = io.StringIO()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, innermost in sys._current_frames().items():
        is_here = ident == threading.get_ident()
        print(f"\nthread {names.get(ident, ident)}:", file=text)
        traceback.print_stack(frame if is_here else innermost, file=text)
    try:
        tasks = asyncio.all_tasks()
    except RuntimeError:  # no event loop runs here
        tasks = set()
    for task in tasks:
        print(file=text)
        task.print_stack(file=text)
    for child in psutil.Process().children(recursive=True):
        print(f"\nprocess {child.pid}: {_command(child)}", file=text)
    return text.getvalue()


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return "(ended)"
