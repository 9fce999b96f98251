"""The function as a process on either ledger, Svix behind it, and the operator's commands."""

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
    """What a request was answered."""

    status: int
    body: dict[str, Any]

    @property
    def outcome(self) -> tuple[int, str]:
        """What Pub/Sub reads, and what a person reads."""
        return self.status, self.body["outcome"]


@dataclass(frozen=True, slots=True)
class Relay:
    """The function on one of the ledgers; tests keep apart by their events' ids."""

    function: Function
    svix: Svix
    settings: dict[str, str]
    _client: httpx.Client

    @property
    def run(self) -> str:
        """A part of ids that no other ledger's run has: they share Svix."""
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
        """Post one body with headers of which some may stand twice."""
        answer = self._client.post(self.function.notifications, content=body, headers=headers)
        return Answer(answer.status_code, answer.json())

    def held(self, event_id: str, project: str = "acme") -> list[dict[str, Any]]:
        """The messages that Svix has of this event."""
        return [m for m in self.svix.control.messages(project) if m["event_id"] == event_id]

    def calls(self) -> int:
        """How many calls Svix has had."""
        return len(self.svix.control.calls())

    def logged(self, message_id: str) -> list[dict[str, Any]]:
        """The log lines of this push."""
        return [line for line in self.function.lines() if line.get("message_id") == message_id]

    def letter(self, letter_id: str) -> DeadLetter | None:
        """A dead letter, whole."""
        found: DeadLetter | None = self.commands.within(
            lambda ledger: ledger.dead_letter(letter_id)
        )
        return found

    def parked(self, answer: Answer) -> DeadLetter:
        """What was parked, whole."""
        letter = self.letter(answer.body["dead_letter"])
        assert letter is not None
        return letter


@pytest.fixture(scope="session")
def svix() -> Iterator[Svix]:
    """One simulator, of the hosted Svix: the open-source one ignores tags."""
    with simulator() as started:
        yield started


@pytest.fixture(scope="session", params=["sqlite", "firestore"])
def settings(
    request: pytest.FixtureRequest, svix: Svix, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Where Svix and the ledger are."""
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
    """The function; the test's own process finds its ledger too, and Svix is healthy after it."""
    for name, value in running.settings.items():
        monkeypatch.setenv(name, value)
    yield running
    running.svix.control.clear_faults()
    running.svix.control.conduct(kind="hosted")
