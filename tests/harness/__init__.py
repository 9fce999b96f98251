"""How a test run works: what its workers share, its limits, and its report.

Each module is a pytest plugin, which `tests/conftest.py` loads. A run has one controller. With
pytest-xdist, the controller starts workers, which run the tests. Without it, the controller runs
the tests itself.
"""

import pytest


def is_controller(config: pytest.Config) -> bool:
    """Whether this process is the controller, not one of its workers."""
    return not hasattr(config, "workerinput")
