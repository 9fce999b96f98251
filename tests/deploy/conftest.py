"""The fixtures of the suites of deploy.sh."""

from pathlib import Path

import pytest

from tests.deploy.script import Script


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """deploy.sh with a stand-in for gcloud."""
    return Script(tmp_path)
