"""The report at the end of a run: the figures of its tests, and the time of each suite."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import PurePath

import pytest

from tests.harness import is_controller

_FIGURES = "figures"


@pytest.fixture
def figures(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """A function that prints a line when the test is over. It works in workers too."""
    return lambda line: record_property(_FIGURES, line)


class _Plugin:
    """Collects the reports of all workers, in the controller."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add up the time, and print the test's figures."""
        self._seconds[_suite(report.nodeid)] += report.duration
        if report.when == "teardown":
            for name, line in report.user_properties:
                if name == _FIGURES:
                    self._terminal.ensure_newline()
                    self._terminal.write_line(str(line))

    def pytest_terminal_summary(self) -> None:
        """Print the suites, the slowest first. The seconds of all workers are added up."""
        self._terminal.section("seconds of each suite")
        for suite, seconds in sorted(self._seconds.items(), key=lambda item: -item[1]):
            if seconds >= 1:
                self._terminal.write_line(f"{seconds:7.1f}  {suite}")
        rest = sum(seconds for seconds in self._seconds.values() if seconds < 1)
        self._terminal.write_line(f"{rest:7.1f}  all others")


def _suite(nodeid: str) -> str:
    """The folder of a test, or its file if it is in `tests` itself."""
    path = PurePath(nodeid.partition("::")[0])
    return str(path if path.parent.name == "tests" else path.parent)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Register the plugin in the controller."""
    plugins = session.config.pluginmanager
    terminal = plugins.get_plugin("terminalreporter")
    if terminal is not None and is_controller(session.config):
        plugins.register(_Plugin(terminal), "suites")
