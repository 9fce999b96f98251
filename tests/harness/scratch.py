"""The run's own directory: for the socket that its workers share, and for temporary files.

The run's `TMPDIR` is in it. So every file that is there at the end was left behind by this run.
"""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.harness import is_controller

VARIABLE = "RELAY_TEST_RUN"
"""The environment variable that holds its path. Every process that a run starts inherits it."""


def scratch() -> Path:
    """The run's directory."""
    return Path(os.environ[VARIABLE])


def temporary() -> Path:
    """The directory of the run's temporary files. pytest's `tmp_path` directories are elsewhere."""
    return scratch() / "tmp"


def pytest_configure(config: pytest.Config) -> None:
    """Make the directory. Workers inherit it."""
    if is_controller(config):
        usual = tempfile.gettempdir()
        directory = tempfile.mkdtemp(prefix="relay-tests-")
        os.environ[VARIABLE] = directory
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", usual)  # the root of all tmp_path
        temporary().mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(temporary())
        config.add_cleanup(lambda: shutil.rmtree(directory))
