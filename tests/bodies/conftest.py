"""The function as a process on each of the two ledgers, with Svix and the operator's commands."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from relay.ledger import DeadLetter
from tests.function import JSON, TOKEN, Function, Svix, function, new_google_project, simulator
from tests.operate.conftest import Relay as Commands


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request."""

    status: int
    body: dict[str, Any]

    @property
    def outcome(self) -> tuple[int, str]:
        """The status, which Pub/Sub reads, and the outcome, which a person reads."""
        return self.status, self.body["outcome"]


@dataclass(frozen=True, slots=True)
class Relay:
    """The function on one of the ledgers. Each test has event ids of its own."""

    function: Function
    svix: Svix
    settings: dict[str, str]
    _client: httpx.Client

    @property
    def run(self) -> str:
        """A part of event ids that differs between the ledgers, which share one Svix."""
        return self.settings["GOOGLE_CLOUD_PROJECT"][-6:]

    @property
    def commands(self) -> Commands:
        """`python -m relay`, with the function's settings."""
        return Commands(self.settings)

    def post(self, body: bytes, headers: Mapping[str, str] = JSON) -> Answer:
        """Post one body."""
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        return self.post_pairs(body, pairs)

    def post_pairs(self, body: bytes, headers: list[tuple[bytes, bytes]]) -> Answer:
        """Post one body with headers, some of which may occur twice."""
        answer = self._client.post(self.function.notifications, content=body, headers=headers)
        return Answer(answer.status_code, answer.json())

    def held(self, event_id: str, project: str = "acme") -> list[dict[str, Any]]:
        """Svix's messages for this event."""
        return [m for m in self.svix.control.messages(project) if m["event_id"] == event_id]

    def calls(self) -> int:
        """The number of calls that Svix has received."""
        return len(self.svix.control.calls())

    def logged(self, message_id: str) -> list[dict[str, Any]]:
        """The log lines of this push."""
        return [line for line in self.function.lines() if line.get("message_id") == message_id]

    def letter(self, letter_id: str) -> DeadLetter | None:
        """A dead letter with its payload."""
        found: DeadLetter | None = self.commands.within(
            lambda ledger: ledger.dead_letter(letter_id)
        )
        return found

    def parked(self, answer: Answer) -> DeadLetter:
        """The dead letter that an answer names, with its payload."""
        letter = self.letter(answer.body["dead_letter"])
        assert letter is not None
        return letter


@pytest.fixture(scope="session")
def svix() -> Iterator[Svix]:
    """A simulator of the hosted Svix, because the open-source one ignores tags."""
    with simulator() as started:
        yield started


@pytest.fixture(scope="session", params=["sqlite", "firestore"])
def settings(
    request: pytest.FixtureRequest, svix: Svix, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The settings of the function: Svix, and one of the ledgers."""
    common = {
        "SVIX_TOKEN": TOKEN,
        "SVIX_SERVER_URL": svix.url,
        "GOOGLE_CLOUD_PROJECT": new_google_project(),
        "REQUEST_BUDGET_SECONDS": "60",
    }
    if request.param == "sqlite":
        return common | {"LEDGER": f"sqlite:{tmp_path_factory.mktemp('ledger') / 'ledger.db'}"}
    return common | {"FIRESTORE_EMULATOR_HOST": request.getfixturevalue("firestore_emulator")}


@pytest.fixture(scope="session")
def running(svix: Svix, settings: dict[str, str]) -> Iterator[Relay]:
    """The function, started once for each ledger."""
    with function(svix.url, **settings) as started, httpx.Client(timeout=60) as client:
        yield Relay(started, svix, settings, client)


@pytest.fixture
def relay(running: Relay, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    """The function. The test's process gets the same settings. Svix's faults end with the test."""
    for name, value in running.settings.items():
        monkeypatch.setenv(name, value)
    yield running
    running.svix.control.clear_faults()
    running.svix.control.set_behaviour(kind="hosted")
