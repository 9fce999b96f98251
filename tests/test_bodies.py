"""Everything that Pub/Sub can bring, over HTTP to the function as a process, on both ledgers."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from relay.config import Settings
from relay.ledger import Archive, DeadLetter
from relay.worker import ledger_opener
from tests.function import JSON, Function, Svix, event, function, new_google_project, simulator
from tests.function import wrapped as wrapped_push

PUBSUB = {"user-agent": "APIs-Google; (+https://developers.google.com/webmasters/APIs-Google.html)"}
TRACE = f"00-{'a' * 32}-{'b' * 16}-01"


@pytest.fixture(scope="module")
def svix() -> Iterator[Svix]:
    """One simulator, of the hosted Svix: the open-source one ignores tags."""
    with simulator() as started:
        yield started


@pytest.fixture(scope="module", params=["sqlite", "firestore"])
def settings(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Where the ledger is."""
    common = {"GOOGLE_CLOUD_PROJECT": new_google_project(), "REQUEST_BUDGET_SECONDS": "60"}
    if request.param == "sqlite":
        return common | {"LEDGER": f"sqlite:{tmp_path_factory.mktemp('ledger') / 'ledger.db'}"}
    return common | {"FIRESTORE_EMULATOR_HOST": request.getfixturevalue("firestore_emulator")}


@pytest.fixture(scope="module")
def relay(svix: Svix, settings: dict[str, str]) -> Iterator[Function]:
    """The function; tests keep apart by their events' ids."""
    with function(svix.url, **settings) as started:
        yield started


@pytest.fixture
def run(settings: dict[str, str]) -> str:
    """A part of ids that no other test has."""
    return settings["GOOGLE_CLOUD_PROJECT"][-6:]


@pytest.fixture
async def archive(
    settings: dict[str, str], svix: Svix, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Archive]:
    """The function's ledger."""
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    environment = {**settings, "SVIX_TOKEN": "testsk", "SVIX_SERVER_URL": svix.url}
    archive = ledger_opener(Settings.from_environment(environment), create=False)()
    yield archive
    await archive.close()


async def post(
    relay: Function, body: bytes, headers: Mapping[str, str]
) -> tuple[int, dict[str, Any]]:
    """Post one body; the status and the answer."""
    async with httpx.AsyncClient(timeout=60) as client:
        response = await client.post(relay.notifications, content=body, headers=dict(headers))
    answer: dict[str, Any] = response.json()
    return response.status_code, answer


def held(svix: Svix, event_id: str) -> list[dict[str, Any]]:
    """The messages that Svix has of this event."""
    return [m for m in svix.control.messages() if m["event_id"] == event_id]


async def letter_of(archive: Archive, answer: Mapping[str, Any]) -> DeadLetter:
    """What was parked, whole."""
    letter = await archive.dead_letter(answer["dead_letter"])
    assert letter is not None
    return letter


def forms(number: int, run: str) -> tuple[dict[str, Any], bytes, dict[str, str]]:
    """An event, and the body and headers of one of the six forms that it may come in."""
    name = f"evt_form{number}_{run}"
    found = event(name, data={"object": "sim", "id": f"sim_{number}", "n": 1.5})
    text = json.dumps(found).encode()
    attributes = {
        "ce-specversion": "1.0",
        "ce-id": name,
        "ce-type": found["type"],
        "ce-project": found["project"],
        "content-type": "application/json",
    }
    data = json.dumps(found["data"]).encode()
    metadata = {
        "x-goog-pubsub-message-id": f"{number}",
        "x-goog-pubsub-subscription-name": "projects/local/subscriptions/relay",
    }
    binary = json.loads(wrapped_push(data, f"{number}"))
    binary["message"]["attributes"] = attributes
    match number:
        case 0:
            return found, wrapped_push(text, "0"), JSON | PUBSUB
        case 1:
            return found, text, JSON | PUBSUB | metadata
        case 2:
            return found, text, JSON | PUBSUB
        case 3:
            return found, text, JSON
        case 4:
            return found, json.dumps(binary).encode(), JSON | PUBSUB
        case _:
            return found, data, PUBSUB | metadata | attributes


@pytest.mark.parametrize("number", range(6))
async def test_each_form_brings_its_event_into_svix_once(
    relay: Function, svix: Svix, run: str, number: int
) -> None:
    """And its repetition in that form is a duplicate; the portal finds it by its SIM."""
    found, body, headers = forms(number, run)
    answers = [await post(relay, body, headers) for _ in range(2)]
    assert [(status, answer["outcome"]) for status, answer in answers] == [
        (200, "delivered"),
        (200, "duplicate"),
    ]
    [message] = held(svix, found["id"])
    payload = json.loads(message["text"])
    if number > 3:
        assert (payload.pop("specversion"), payload.pop("datacontenttype")) == (
            "1.0",
            "application/json",
        )
    assert payload == found
    assert message["tags"] == [f"sim_{number}"]


@pytest.mark.parametrize("more", [{}, {"x-goog-pubsub-message-id": "9"}])
async def test_poison_in_an_unwrapped_push_is_parked(
    relay: Function, archive: Archive, run: str, more: dict[str, str]
) -> None:
    """Acknowledged, with the names that could be read."""
    poison = f'{{"id":"evt_poison_{run}","type":"user.created","project":"acme","x":'.encode()
    status, answer = await post(relay, poison, JSON | PUBSUB | more)
    assert (status, answer["outcome"]) == (200, "malformed")
    letter = await letter_of(archive, answer)
    assert (letter.event_id, letter.project) == (f"evt_poison_{run}", "acme")
    assert letter.data == poison


@pytest.mark.parametrize("form", ["wrapped", "unwrapped"])
async def test_ten_megabytes_are_parked_whole(
    relay: Function, svix: Svix, archive: Archive, run: str, form: str
) -> None:
    """Not parsed, not sent, not nacked; with the names that the attributes tell."""
    data = random.Random(7).randbytes(10_000_000)  # noqa: S311 - nothing that compresses
    name = f"evt_large_{form}_{run}"
    attributes = {"ce-specversion": "1.0", "ce-id": name, "ce-project": "acme"}
    if form == "wrapped":
        push = json.loads(wrapped_push(data, "9"))
        push["message"]["attributes"] = attributes
        status, answer = await post(relay, json.dumps(push).encode(), JSON | PUBSUB)
    else:
        status, answer = await post(relay, data, PUBSUB | attributes)
    assert (status, answer["outcome"]) == (200, "rejected")
    letter = await letter_of(archive, answer)
    assert letter.data == data
    assert (letter.event_id, letter.project) == (name, "acme")
    assert not held(svix, name)


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        (b"{}", JSON | {"content-encoding": "gzip"}, (415, "malformed")),
        (b"{}", {"content-type": "text/plain"}, (415, "malformed")),
        (b"[1]", JSON, (400, "malformed")),
        (b"[" + b" " * 2 * 1024 * 1024 + b"]", JSON, (413, "rejected")),
        (b'{"id":"e","type":"t","project":"p","id":"f"}', JSON, (400, "malformed")),
        (b"{}", {"ce-specversion": "1.0", "ce-id": "e"}, (400, "malformed")),
    ],
)
async def test_by_hand_what_cannot_be_carried_is_answered(
    relay: Function, body: bytes, headers: dict[str, str], expected: tuple[int, str]
) -> None:
    """Whoever posted it reads why."""
    status, answer = await post(relay, body, headers)
    assert (status, answer["outcome"]) == expected
    assert answer["detail"]
    assert "dead_letter" not in answer


@pytest.mark.parametrize("arrived", [0, 1, 150])
@pytest.mark.parametrize("length", [200, 100_000])
async def test_a_body_that_breaks_off_is_incomplete_and_never_parked(
    relay: Function, run: str, arrived: int, length: int
) -> None:
    """Wherever it breaks, and though it is a push."""
    at = urlsplit(relay.url)
    message_id = f"{run}.{arrived}.{length}"
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    head = f"POST /notifications HTTP/1.1\r\nHost: relay\r\nContent-Length: {length}\r\n"
    head += f"x-goog-pubsub-message-id: {message_id}\r\n\r\n"
    writer.write(head.encode() + b" " * arrived)
    writer.write_eof()
    assert not await reader.read()  # nobody is there to be answered
    writer.close()
    async with asyncio.timeout(30):
        while not (lines := logged(relay, message_id)):  # noqa: ASYNC110 - another process has no event
            await asyncio.sleep(0.05)
    [line] = lines
    assert (line["outcome"], line["status"]) == ("incomplete", 408)
    assert "dead_letter" not in line


def logged(relay: Function, message_id: str) -> list[dict[str, Any]]:
    """The log lines of this push."""
    return [line for line in relay.lines() if line.get("message_id") == message_id]


async def test_a_delivery_is_logged_under_its_publishers_trace(
    relay: Function, settings: dict[str, str], run: str
) -> None:
    """As Google's client libraries inject it into the message, not as the push's request has it."""
    push = json.loads(wrapped_push(json.dumps(event(f"evt_trace_{run}")).encode(), f"{run}.trace"))
    push["message"]["attributes"] = {"googclient_traceparent": TRACE}
    other = {"traceparent": TRACE.replace("a", "c")}
    await post(relay, json.dumps(push).encode(), JSON | PUBSUB | other)
    [line] = logged(relay, f"{run}.trace")
    project = settings["GOOGLE_CLOUD_PROJECT"]
    assert line["logging.googleapis.com/trace"] == f"projects/{project}/traces/{'a' * 32}"
    assert line["logging.googleapis.com/spanId"] == "b" * 16
