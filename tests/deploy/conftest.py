"""What the suites of deploy.sh share."""

from pathlib import Path

import pytest

from tests.deploy.script import Script


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """A script and its stand-in."""
    return Script(tmp_path)
