"""An event of any size is delivered or parked. It is never nacked because of its size."""

import base64
import json
import random

import pytest

from relay.envelope import EVENT_LIMIT, PUSH_LIMIT
from tests.bodies.conftest import Relay
from tests.bodies.forms import PUSHED, event, push
from tests.function import JSON, wrapped

KIB, MIB = 2**10, 2**20
LARGEST = random.Random(7).randbytes(10_000_000)  # noqa: S311 - does not compress
"""Pub/Sub's largest message."""


PROJECT = "large"


def text_of(event_id: str, filler: str) -> bytes:
    """An event without needless spaces, which the hosted Svix does not count."""
    return json.dumps(event(event_id, project=PROJECT, more=filler), separators=(",", ":")).encode()


def sized(event_id: str, size: int) -> bytes:
    """An event of this many bytes."""
    return text_of(event_id, "x" * (size - len(text_of(event_id, ""))))


@pytest.mark.parametrize("form", ["wrapped", "unwrapped", "by hand"])
@pytest.mark.parametrize(
    "size", [16 * KIB, 16 * KIB + 1, 64 * KIB, 64 * KIB + 1, MIB, MIB + 1, EVENT_LIMIT]
)
def test_an_event_is_delivered_up_to_svixs_limit_and_parked_above_it(
    relay: Relay, form: str, size: int
) -> None:
    """Svix decides: its limit is 1 MiB, and the relay's own is 2 MiB."""
    event_id = f"evt_size_{form.replace(' ', '_')}_{size}_{relay.run}"
    text = sized(event_id, size)
    match form:
        case "wrapped":
            answer = relay.post(wrapped(text, event_id), JSON | PUSHED)
        case "unwrapped":
            answer = relay.post(text, PUSHED)
        case _:
            answer = relay.post(text)
    if size <= MIB:
        assert answer.outcome == (200, "delivered")
        assert len(relay.held(event_id, PROJECT)) == 1
        return
    assert answer.outcome == (422 if form == "by hand" else 200, "rejected")
    if form != "by hand":
        letter = relay.parked(answer)
        assert (letter.event_id, letter.svix_status, letter.data) == (event_id, 413, text)
    assert not relay.held(event_id, PROJECT)


@pytest.mark.parametrize("form", ["wrapped", "unwrapped", "by hand"])
@pytest.mark.parametrize("sound", [True, False])
def test_over_two_mebibytes_an_event_is_neither_parsed_nor_sent(
    relay: Relay, form: str, *, sound: bool
) -> None:
    """A push is parked with the names in its attributes. A body posted by hand is answered."""
    event_id = f"evt_over_{form.replace(' ', '_')}_{sound}_{relay.run}"
    size = EVENT_LIMIT + 1
    data = sized(event_id, size) if sound else (b'{"a":[]},' * size)[:size]
    attributes = {"ce-specversion": "1.0", "ce-id": event_id, "ce-type": "t", "ce-project": "acme"}
    before = relay.calls()
    match form:
        case "wrapped":
            answer = relay.post(push(data, attributes, event_id), JSON | PUSHED)
        case "unwrapped":
            answer = relay.post(data, PUSHED | attributes)
        case _:
            answer = relay.post(data)
    assert answer.outcome == (413 if form == "by hand" else 200, "rejected")
    assert relay.calls() == before
    if form != "by hand":
        letter = relay.parked(answer)
        assert letter.data == data
        names = letter.event_id, letter.event_type, letter.project
        assert names == (event_id, "t", "acme")


def test_ten_megabytes_in_an_unwrapped_push_are_parked(relay: Relay) -> None:
    """The push is not nacked, and the letter has the names in its headers."""
    event_id = f"evt_unwrapped_{relay.run}"
    attributes = {"ce-specversion": "1.0", "ce-id": event_id, "ce-project": PROJECT}
    answer = relay.post(LARGEST, PUSHED | attributes)
    assert answer.outcome == (200, "rejected")
    letter = relay.parked(answer)
    assert (letter.event_id, letter.project, letter.data) == (event_id, PROJECT, LARGEST)


def test_ten_megabytes_are_parked_shown_replayed_and_discarded_whole(relay: Relay) -> None:
    """Firestore stores the letter in parts, because one document is too small."""
    event_id = f"evt_wrapped_{relay.run}"
    attributes = {"ce-specversion": "1.0", "ce-id": event_id, "ce-project": PROJECT}
    answer = relay.post(push(LARGEST, attributes, event_id), JSON | PUSHED)
    assert answer.outcome == (200, "rejected")
    letter = relay.parked(answer)
    assert (letter.event_id, letter.project, letter.data) == (event_id, PROJECT, LARGEST)
    shown = relay.commands.json("dead-letters", "show", letter.id, "--payload")
    assert shown["bytes"] == len(LARGEST)
    assert shown["payload"] == LARGEST.decode(errors="replace")
    replayed = relay.commands("dead-letters", "replay", letter.id)
    assert (replayed.exit_code, "rejected" in replayed.stdout) == (1, True)
    assert relay.parked(answer) == letter
    assert relay.commands("dead-letters", "discard", letter.id, "--reason", "why").exit_code == 0
    given_up = relay.parked(answer)
    assert (given_up.data, given_up.discarded, given_up.event_id) == (b"", "why", event_id)
    assert not relay.held(event_id, PROJECT)


def test_a_letter_in_parts_is_delivered_by_a_replay(relay: Relay) -> None:
    """If Svix takes it now, a replay delivers the event unchanged and deletes the letter."""
    event_id = f"evt_parts_{relay.run}"
    filler = base64.b85encode(random.Random(8).randbytes(1_400_000)).decode()  # noqa: S311 - as above
    text = text_of(event_id, filler)
    answer = relay.post(wrapped(text, event_id), JSON | PUSHED)
    assert answer.outcome == (200, "rejected")
    relay.svix.control.set_behaviour(kind="open_source")  # takes 2 MiB, shows the text unchanged
    replayed = relay.commands("dead-letters", "replay", answer.body["dead_letter"])
    assert replayed.exit_code == 0, replayed.output
    [message] = relay.held(event_id, PROJECT)
    assert message["text"].encode() == text
    assert relay.letter(answer.body["dead_letter"]) is None


@pytest.mark.parametrize(
    ("size", "expected"), [(PUSH_LIMIT, (200, "malformed")), (PUSH_LIMIT + 1, (413, "rejected"))]
)
def test_a_body_larger_than_any_push_is_not_from_pubsub(
    relay: Relay, size: int, expected: tuple[int, str]
) -> None:
    """It is refused unread, and not parked. The largest possible push is parked."""
    shell = len(wrapped(b"", "largest"))
    body = wrapped(b"", "largest").replace(b'"data": ""', b'"data": "%s"' % (b"*" * (size - shell)))
    assert len(body) == size
    answer = relay.post(body, JSON | PUSHED)
    assert answer.outcome == expected
    assert ("dead_letter" in answer.body) == (expected[0] == 200)
