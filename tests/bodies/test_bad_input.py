"""Bad input is never answered 500 or changed silently. An incomplete body is never parked."""

import asyncio
import gzip
import json
from urllib.parse import urlsplit

import pytest

from tests.bodies.conftest import Relay
from tests.bodies.forms import FORMS, PUSHED, event, metadata, push, request
from tests.function import JSON, wrapped

NAMES = {"id": "event_id", "type": "event_type", "project": "project"}


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
def test_a_bad_body_posted_by_hand_is_answered(
    relay: Relay, body: bytes, headers: dict[str, str], expected: tuple[int, str]
) -> None:
    """The answer says what is wrong."""
    answer = relay.post(body, headers)
    assert answer.outcome == expected
    assert answer.body["detail"]
    assert "dead_letter" not in answer.body


@pytest.mark.parametrize("form", ["wrapped", "unwrapped", "by hand"])
@pytest.mark.parametrize("name", list(NAMES))
def test_an_event_with_a_name_that_occurs_twice_is_malformed(
    relay: Relay, form: str, name: str
) -> None:
    """The customer's parser might take the other value.

    The dead letter has the names that occur once.
    """
    sent = event(f"evt_twice_{name}_{form.replace(' ', '_')}_{relay.run}")
    text = json.dumps(sent)[:-1].encode() + b', "%s": "other"}' % name.encode()
    before = relay.calls()
    match form:
        case "wrapped":
            answer = relay.post(wrapped(text, sent["id"]), JSON | PUSHED)
        case "unwrapped":
            answer = relay.post(text, PUSHED)
        case _:
            answer = relay.post(text)
    assert answer.outcome == (400 if form == "by hand" else 200, "malformed")
    assert answer.body["detail"] == f"`{name}` occurs twice"
    assert relay.calls() == before
    if form != "by hand":
        letter = relay.parked(answer)
        kept = {each: getattr(letter, field) for each, field in NAMES.items()}
        assert kept == {each: None if each == name else sent[each] for each in NAMES}
        assert letter.data == text


@pytest.mark.parametrize("form", ["unwrapped", "in the message", "the push itself"])
def test_a_compressed_push_is_parked_unchanged(relay: Relay, form: str) -> None:
    """It is never decompressed."""
    sent = event(f"evt_gzip_{relay.run}")
    packed = gzip.compress(json.dumps(sent).encode(), mtime=0)
    declared = PUSHED | {"content-encoding": "gzip"}
    if form == "unwrapped":
        answer = relay.post(packed, declared | metadata(f"gzip.{relay.run}"))
    elif form == "in the message":
        body = push(packed, {"content-encoding": "gzip"}, f"gzip.wrapped.{relay.run}")
        answer = relay.post(body, JSON | PUSHED)
    else:
        packed = gzip.compress(request("wrapped", sent)[0], mtime=0)
        answer = relay.post(packed, JSON | declared)
    assert answer.outcome == (200, "malformed")
    assert relay.parked(answer).data == packed
    assert not relay.held(sent["id"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("where", [0.0, 0.5, 1.0], ids=["before", "within", "at its end"])
async def test_a_body_that_breaks_off_is_incomplete_and_can_be_sent_again(
    relay: Relay, form: str, where: float
) -> None:
    """Nothing is parked or sent, in any form. When the whole body comes, it is delivered."""
    sent = event(f"evt_broken_{FORMS.index(form)}_{where:g}_{relay.run}")
    body, headers = request(form, sent)
    seen = len(relay.function.lines())
    await _break_off(relay, headers, len(body), body[: round((len(body) - 1) * where)])
    async with asyncio.timeout(30):
        while len(relay.function.lines()) == seen:  # noqa: ASYNC110 - another process can't signal it
            await asyncio.sleep(0.02)
    [line] = relay.function.lines()[seen:]
    assert (line["outcome"], line["status"]) == ("incomplete", 408)
    assert "dead_letter" not in line
    assert line.get("message_id") == headers.get("x-goog-pubsub-message-id")
    assert not relay.held(sent["id"])
    assert relay.post(body, headers).outcome == (200, "delivered")


@pytest.mark.parametrize("arrived", [0, 1, 50_000])
async def test_a_large_body_that_breaks_off_is_incomplete(relay: Relay, arrived: int) -> None:
    """A large body is admitted before its first byte is read."""
    message_id = f"broken.{arrived}.{relay.run}"
    await _break_off(relay, PUSHED | metadata(message_id), 14_000_000, b" " * arrived)
    async with asyncio.timeout(30):
        while not (lines := relay.logged(message_id)):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.02)
    assert [line["outcome"] for line in lines] == ["incomplete"]


async def test_a_body_without_a_length_that_breaks_off_is_incomplete(relay: Relay) -> None:
    """A chunked body has no Content-Length. This one breaks off between two chunks."""
    message_id = f"broken.chunks.{relay.run}"
    headers = PUSHED | metadata(message_id)
    chunk = b'{"id":"evt_1","type":"t","project":"acme"}'
    await _break_off(relay, headers, None, b"%x\r\n%s\r\n" % (len(chunk), chunk))
    async with asyncio.timeout(30):
        while not (lines := relay.logged(message_id)):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.02)
    assert [line["outcome"] for line in lines] == ["incomplete"]


async def _break_off(
    relay: Relay, headers: dict[str, str], length: int | None, arrived: bytes
) -> None:
    """Send a request's head and the beginning of its body, and disconnect."""
    at = urlsplit(relay.function.url)
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    head = ["POST /notifications HTTP/1.1", "Host: relay", framing]
    head += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*head, "", ""]).encode() + arrived)
    writer.write_eof()
    assert not await reader.read()  # the client has left, so there is no answer
    writer.close()
