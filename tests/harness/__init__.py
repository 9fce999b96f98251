"""How a run of the suites works: what its workers share, its limits, and what it reports.

Each module is a pytest plugin that `tests/conftest.py` loads. A run has one controller. With
pytest-xdist the tests run in workers, which the controller starts; without, it runs them itself.
"""

import pytest


def is_controller(config: pytest.Config) -> bool:
    """Whether this is the process that pytest was started as, and not one of its workers."""
    return not hasattr(config, "workerinput")
