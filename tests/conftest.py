"""How the suites run: `tests/harness` has it, one plugin for each concern."""

pytest_plugins = [
    "tests.harness.scratch",
    "tests.harness.limit",
    "tests.harness.processes",
    "tests.harness.leftovers",
    "tests.harness.emulators",
    "tests.harness.report",
]
