"""Only reviewed packages are installed: every requirement is exact, hashed, and from the index.

These tests need no network. Only a database knows about vulnerabilities: with a network, run
`pip-audit --require-hashes --disable-pip -r requirements.txt`.
"""

import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent.parent
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def locked(name: str) -> dict[str, tuple[Requirement, int]]:
    """The requirements of a lock file, each with its number of hashes."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        statement = line.partition(" #")[0].strip()
        if not statement or statement.startswith("#"):
            continue
        requirement = Requirement(HASH.sub("", statement).strip())
        found[requirement.name] = (requirement, len(HASH.findall(statement)))
    return found


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_every_requirement_is_exact_and_hashed(name: str) -> None:
    """Each has one version, by `==`, and a hash. There is no URL, no path and no other index."""
    requirements = locked(name)
    assert len(requirements) > 10
    for requirement, hashes in requirements.values():
        [pin] = requirement.specifier
        assert pin.operator == "==", requirement
        assert "*" not in pin.version, requirement
        assert requirement.url is None, requirement
        assert hashes > 0, requirement


@pytest.mark.parametrize("name", ["requirements", "requirements-dev"])
def test_every_direct_requirement_is_locked(name: str) -> None:
    """Each line of the `.in` file has a version in the lock file."""
    lines = (ROOT / f"{name}.in").read_text().splitlines()
    asked = {line.partition("#")[0].strip() for line in lines if not line.startswith(("#", "-"))}
    assert asked - {""} <= locked(f"{name}.txt").keys()


def test_the_installed_versions_are_the_locked_ones() -> None:
    """These suites run on the versions that are deployed."""
    for requirement, _ in locked("requirements.txt").values():
        if requirement.marker is None or requirement.marker.evaluate():
            assert requirement.specifier.contains(version(requirement.name)), (
                f"{requirement} is locked, {version(requirement.name)} runs in {sys.prefix}"
            )
