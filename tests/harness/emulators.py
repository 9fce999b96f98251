"""Google's emulators, which are started once in a run and shared by its workers.

The controller owns them. A worker asks for one through a Unix socket, and the controller starts it
at the first request. Each test uses a Google project of its own, so that tests do not see each
other's data.
"""

import contextlib
import functools
import json
import os
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from local import emulators
from local.processes import Server, ServerFailed
from tests.function import new_google_project
from tests.harness import is_controller
from tests.harness.processes import skip_if_none_may_start
from tests.harness.scratch import scratch

_STARTERS = {
    "firestore": emulators.firestore_emulator,
    "pubsub": emulators.pubsub_emulator,
}


class _Lender(socketserver.ThreadingUnixStreamServer):
    """Reads a line with an emulator's name, and answers with the emulator's address."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), _Request)
        self._stack = ExitStack()
        starters = {name: _once(functools.partial(self._start, name)) for name in _STARTERS}
        self.address: Callable[[str], str] = lambda name: starters[name]()

    def _start(self, name: str) -> str:
        address, _ = self._stack.enter_context(_STARTERS[name]())
        return address

    def server_close(self) -> None:
        """Stop listening, then stop the emulators."""
        super().server_close()
        self._stack.close()


class _Request(socketserver.StreamRequestHandler):
    server: _Lender

    def handle(self) -> None:
        """Answer one line."""
        name = self.rfile.readline().decode().strip()
        try:
            answer = {"address": self.server.address(name)}
        except ServerFailed as failure:
            answer = {"failure": str(failure)}
        with contextlib.suppress(BrokenPipeError):  # the worker was told to end meanwhile
            self.wfile.write(json.dumps(answer).encode())


def _once(start: Callable[[], str]) -> Callable[[], str]:
    """`start`, but it runs only once. Later callers get what the first call returned or raised."""
    lock = threading.Lock()
    results: list[str | ServerFailed] = []

    def result() -> str:
        with lock:
            if not results:
                try:
                    results.append(start())
                except ServerFailed as failure:
                    results.append(failure)
        if isinstance(results[0], ServerFailed):
            raise results[0]
        return results[0]

    return result


class _Plugin:
    """Serves the workers for as long as the run lasts. Only the controller has it."""

    def __init__(self, lender: _Lender) -> None:
        self._lender = lender
        self._thread = threading.Thread(target=lender.serve_forever, args=(0.05,))
        self._thread.start()

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Stop the emulators. The workers have ended by now."""
        self._lender.shutdown()
        self._lender.server_close()
        self._thread.join()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Listen for the workers before they start."""
    if is_controller(session.config):
        lender = _Lender(scratch() / "emulators")
        session.config.pluginmanager.register(_Plugin(lender), "emulators")


def _require_emulators() -> None:
    """Skip the test with a message if the emulators can't run here.

    With REQUIRE_EMULATORS=1, fail it.
    """
    skip_if_none_may_start()
    if lacking := emulators.missing():
        if os.environ.get("REQUIRE_EMULATORS") == "1":
            pytest.fail(f"REQUIRE_EMULATORS=1, but {lacking}")
        pytest.skip(f"NOT TESTED: Google's emulators can't run here: {lacking}")


def _borrow(name: str) -> str:
    _require_emulators()
    with socket.socket(socket.AF_UNIX) as lender:
        lender.connect(str(scratch() / "emulators"))
        lender.sendall(f"{name}\n".encode())
        answer = json.load(lender.makefile())
    if "failure" in answer:
        pytest.fail(answer["failure"], pytrace=False)
    address: str = answer["address"]
    return address


@pytest.fixture(scope="session")
def firestore_emulator() -> str:
    """The shared Firestore emulator's `host:port`. Each test must use its own project in it."""
    return _borrow("firestore")


@pytest.fixture(scope="session")
def pubsub_emulator() -> str:
    """The shared Pub/Sub emulator's `host:port`. Each test must use its own project in it."""
    return _borrow("pubsub")


@pytest.fixture
def own_firestore_emulator() -> Iterator[tuple[str, Server]]:
    """A Firestore emulator that the test may stop and pause: its `host:port`, and its process."""
    _require_emulators()
    with emulators.firestore_emulator() as started:
        yield started


@pytest.fixture
def google_project() -> str:
    """The id of a Google project that no other test uses."""
    return new_google_project()


@pytest.fixture
def firestore(firestore_emulator: str, google_project: str) -> dict[str, str]:
    """The settings of an empty Firestore ledger, for the function's environment."""
    return {"FIRESTORE_EMULATOR_HOST": firestore_emulator, "GOOGLE_CLOUD_PROJECT": google_project}
