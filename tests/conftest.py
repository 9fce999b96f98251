"""Loads the plugins of `tests/harness`, which say how the suites run."""

pytest_plugins = [
    "tests.harness.scratch",
    "tests.harness.limit",
    "tests.harness.processes",
    "tests.harness.leftovers",
    "tests.harness.emulators",
    "tests.harness.report",
]
