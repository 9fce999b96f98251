"""Loads the plugins of `tests/harness`, and defines `svix`, a fixture that several suites use."""

from collections.abc import Iterator

import pytest

from tests.function import Svix, simulator

pytest_plugins = [
    "tests.harness.scratch",
    "tests.harness.limit",
    "tests.harness.processes",
    "tests.harness.leftovers",
    "tests.harness.emulators",
    "tests.harness.report",
]


@pytest.fixture(scope="module")
def svix() -> Iterator[Svix]:
    """A simulator with its default settings. A suite that needs others overrides this fixture."""
    with simulator() as started:
        yield started
