"""A run names what hung, what was left behind and by whom; shown on runs of their own."""

import sys
from pathlib import Path

import pytest

from tests.harness.processes import gone

pytest_plugins = ["pytester"]

PLUGINS = ["scratch", "limit", "processes", "leftovers", "report"]


@pytest.fixture
def run(pytester: pytest.Pytester) -> "Run":
    """Runs a test module under the harness."""
    return Run(pytester)


class Run:
    """A pytest of its own."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self._pytester = pytester

    def __call__(self, module: str, *options: str) -> pytest.RunResult:
        """Its end; the tests of `module` run under our plugins, one after the other."""
        path = self._pytester.makepyfile(test_inner=module)
        plugins = [word for name in PLUGINS for word in ("-p", f"tests.harness.{name}")]
        command = [sys.executable, "-m", "pytest", *plugins, *options, str(path)]
        return self._pytester.run(*command, timeout=60)


@pytest.fixture(autouse=True)
def _find_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """The inner run starts elsewhere and imports our plugins all the same."""
    root = Path(__file__).parent.parent.parent
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("NO_PROCESSES", raising=False)


def test_what_hangs_is_named_with_its_tasks(run: Run) -> None:
    """The line where an asyncio task waits stands in no stack of a thread."""
    ended = run(
        """
        import asyncio, pytest

        async def waits_for_ever():
            await asyncio.Event().wait()

        async def gathers():
            await asyncio.gather(waits_for_ever())

        @pytest.mark.time_limit(0.2)
        def test_hangs():
            asyncio.run(gathers())
        """
    )
    ended.assert_outcomes(failed=1)
    ended.stdout.fnmatch_lines(["not over after 0.2 s", "*await asyncio.Event().wait()*"])


def test_a_limit_holds_for_the_teardown_too(run: Run) -> None:
    """A server that won't stop hangs there."""
    ended = run(
        """
        import pytest, threading

        @pytest.fixture
        def slow_to_end():
            yield
            threading.Event().wait()

        @pytest.mark.time_limit(0.2)
        def test_passes(slow_to_end):
            pass
        """
    )
    ended.assert_outcomes(passed=1, errors=1)
    ended.stdout.fnmatch_lines(["*in slow_to_end", "*threading.Event().wait()*"])


def test_a_process_is_named_with_its_test_and_port_and_killed(run: Run) -> None:
    """Also one that left its parent's process group."""
    ended = run(
        """
        import subprocess, sys

        SERVER = '''
        import socket, time
        listener = socket.create_server(("127.0.0.1", 0))
        print("up", flush=True)
        time.sleep(600)
        '''.replace("        ", "")

        def test_leaves_a_server():
            command = [sys.executable, "-c", SERVER]
            server = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
            server.stdout.readline()
            open("pid", "w").write(str(server.pid))
        """
    )
    ended.assert_outcomes(passed=1)
    assert ended.ret == pytest.ExitCode.TESTS_FAILED
    ended.stdout.re_match_lines(
        [
            r".*LEFT BEHIND",
            r"process \d+ \(.*, listening on 127.0.0.1:\d+\), started in .*::test_leaves_a_server",
        ]
    )
    assert gone(int(Path("pid").read_text()))


def test_a_file_outside_the_tests_folder_is_named(run: Run) -> None:
    """`tmp_path` is where a test's files belong."""
    ended = run(
        """
        import tempfile

        def test_leaves_a_file(tmp_path):
            (tmp_path / "fine").touch()
            tempfile.mkstemp(prefix="astray-")
        """
    )
    assert ended.ret == pytest.ExitCode.TESTS_FAILED
    ended.stdout.re_match_lines([".*LEFT BEHIND", "file .*/astray-"])


def test_a_port_is_named_with_its_module(run: Run) -> None:
    """A server within the test's process."""
    ended = run(
        """
        import socket

        kept = []

        def test_leaves_a_port():
            kept.append(socket.create_server(("127.0.0.1", 0)))
        """
    )
    ended.assert_outcomes(passed=1, errors=1)
    ended.stdout.re_match_lines([r"test_inner.py left open port 127.0.0.1:\d+"])


def test_a_run_that_leaves_nothing_passes(run: Run) -> None:
    """With each of the things above, cleaned up."""
    ended = run(
        """
        import socket, subprocess, sys, tempfile

        def test_cleans_up(tmp_path):
            subprocess.run([sys.executable, "-c", ""], check=True)
            with socket.create_server(("127.0.0.1", 0)), tempfile.TemporaryDirectory():
                pass
        """
    )
    ended.assert_outcomes(passed=1)
    assert ended.ret == pytest.ExitCode.OK
    ended.stdout.fnmatch_lines(["*seconds of each suite*"])


def test_without_processes_a_test_that_starts_one_is_skipped(run: Run) -> None:
    """In a fixture as well, and nothing else is skipped."""
    ended = run(
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
        """,
        "--no-processes",
    )
    ended.assert_outcomes(passed=1, skipped=2)
