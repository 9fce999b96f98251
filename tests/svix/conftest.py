"""The conformance suite: every behaviour of Svix on which the relay and its commands rely.

`make test` runs it on the simulator, as the hosted Svix and as the open-source one. `make
conformance` runs it on the Svix of `SVIX_SERVER_URL` and `SVIX_TOKEN`. `SVIX_SECOND_TOKEN` is
another token of the same environment. Everything that the suite creates there has a name with its
own prefix, and is removed at the end. Where the two kinds of Svix differ, the test names what it
expects of each.

Three behaviours would take too long: a key is kept for twelve hours, the hosted Svix knows an event
id for a day, and a listing reaches ninety days back. The simulator's own tests check them.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest

from local.customer import Customer
from tests.function import TOKEN, simulator
from tests.svix.target import PREFIX, Environment, Target, reaches_us

_REAL = os.environ.get("CONFORMANCE") == "1"
_KINDS = ["real"] if _REAL else ["hosted", "open_source"]
_WANTED = ("SVIX_SERVER_URL", "SVIX_TOKEN")


def pytest_configure() -> None:
    """Exit at once if a setting is missing."""
    missing = [name for name in _WANTED if not os.environ.get(name)]
    if _REAL and missing:
        pytest.exit(
            f"make conformance runs on a real Svix and needs {' and '.join(missing)}: the API's "
            "URL (https://api.eu.svix.com, or your own server's) and a token of a test environment",
            returncode=2,
        )


def pytest_report_header() -> list[str]:
    """Name the Svix under test in pytest's header."""
    if not _REAL:
        return []
    kind = "hosted" if Target.from_environment().is_hosted else "open-source"
    url = os.environ["SVIX_SERVER_URL"]
    return [f"conformance of {url}, checked as a {kind} Svix; all names begin with {PREFIX}-"]


@pytest.fixture(scope="session", params=_KINDS)
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """The Svix under test."""
    if request.param == "real":
        real = Target.from_environment()
        yield replace(real, reaches_us=asyncio.run(reaches_us(real)))
        return
    second = f"{TOKEN}_2"
    with simulator("--kind", request.param, "--second-token", second) as running:
        yield Target(running.url, TOKEN, second, request.param == "hosted", reaches_us=True)


@pytest.fixture(scope="session")
def made(target: Target) -> Iterator[tuple[set[str], set[str]]]:
    """The applications and event types that the tests created. They are removed at the end."""
    applications, event_types = set[str](), set[str]()
    yield applications, event_types
    asyncio.run(_remove(target, applications, event_types))


async def _remove(target: Target, applications: set[str], event_types: set[str]) -> None:
    environment = Environment.open(target, applications, event_types)
    paths = [f"app/{uid}" for uid in applications]
    paths += [f"event-type/{name}?expunge=true" for name in event_types]
    replies = await asyncio.gather(*(environment.call("DELETE", path) for path in paths))
    await environment.close()
    wrong = {reply.status for reply in replies} - {204, 404}
    assert not wrong, f"not all names that begin with {PREFIX}- could be removed: {wrong}"


@pytest.fixture
async def svix(target: Target, made: tuple[set[str], set[str]]) -> AsyncIterator[Environment]:
    """Clients of the Svix under test, and the names that this test creates there."""
    environment = Environment.open(target, *made)
    yield environment
    await environment.close()


@pytest.fixture
def customer(target: Target) -> Iterator[Customer]:
    """A customer's endpoint on this machine."""
    with Customer() as running:
        yield running
