"""A run's own directory: its workers meet there, and temporary files of the tests go there.

`TMPDIR` of the run points into it. So whatever is left in there at the end was left by this run.
"""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.harness import is_controller

VARIABLE = "RELAY_TEST_RUN"
"""The environment variable that holds its path. All that a run starts inherits it."""


def scratch() -> Path:
    """The run's directory."""
    return Path(os.environ[VARIABLE])


def temporary() -> Path:
    """Where the run's temporary files go; pytest's `tmp_path` directories are elsewhere."""
    return scratch() / "tmp"


def pytest_configure(config: pytest.Config) -> None:
    """Make it; workers inherit it."""
    if is_controller(config):
        usual = tempfile.gettempdir()
        directory = tempfile.mkdtemp(prefix="relay-tests-")
        os.environ[VARIABLE] = directory
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", usual)  # the root of all tmp_path
        temporary().mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(temporary())
        config.add_cleanup(lambda: shutil.rmtree(directory))
