"""Fixtures that several suites share: Google's emulators, started once where a suite asks."""

import contextlib
import os
from collections.abc import Callable, Iterator

import pytest

from local import emulators
from local.processes import Server


def _started(
    start: Callable[[], contextlib.AbstractContextManager[tuple[str, Server]]],
) -> Iterator[str]:
    """The emulator's address; no test that needs it passes silently where it is missing."""
    if lacking := emulators.missing():
        if os.environ.get("REQUIRE_EMULATORS") == "1":
            pytest.fail(f"REQUIRE_EMULATORS=1, but {lacking}")
        pytest.skip(f"NOT TESTED: Google's emulators do not run here: {lacking}")
    with start() as (address, _):
        yield address


@pytest.fixture(scope="session")
def firestore_emulator() -> Iterator[str]:
    """The Firestore emulator's `host:port`. A test keeps to itself by a project id of its own."""
    yield from _started(emulators.firestore_emulator)


@pytest.fixture(scope="session")
def pubsub_emulator() -> Iterator[str]:
    """The Pub/Sub emulator's `host:port`. A test keeps to itself by a project id of its own."""
    yield from _started(emulators.pubsub_emulator)
