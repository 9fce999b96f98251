"""CloudEvents in binary mode, wrapped and unwrapped: how attributes and data are handled."""

import base64
import gzip
import json

import pytest

from tests.bodies.conftest import Answer, Relay
from tests.bodies.forms import PUSHED, push
from tests.function import JSON

DATA = b'{"id":"sim_1"}'
NAMES = {"ce-id": "event_id", "ce-type": "event_type", "ce-project": "project"}
WRAPPED, UNWRAPPED = "wrapped", "unwrapped"

forms = pytest.mark.parametrize("form", [WRAPPED, UNWRAPPED])


def attributes_of(event_id: str) -> dict[str, str]:
    """The attributes of an event in binary mode."""
    return {
        "ce-specversion": "1.0",
        "ce-id": event_id,
        "ce-type": "user.created",
        "ce-project": "acme",
        "ce-source": "/users",
        "ce-time": "2026-11-24T09:15:01Z",
        "content-type": "application/json",
    }


def post(relay: Relay, form: str, data: bytes, attributes: dict[str, str]) -> Answer:
    """Push data and attributes in one of the two forms."""
    if form == WRAPPED:
        message_id = attributes.get("ce-id", "none")
        return relay.post(push(data, attributes, message_id), JSON | PUSHED)
    return relay.post(data, PUSHED | attributes)


@forms
@pytest.mark.parametrize(
    ("data", "content_type"),
    [
        (b"\xff\x00", "application/octet-stream"),
        (b"not JSON", "application/json"),
        (b'{"n":NaN}', "application/json"),
        (b'"plain"', "text/plain"),
    ],
)
def test_data_that_is_not_json_goes_as_base64(
    relay: Relay, form: str, data: bytes, content_type: str
) -> None:
    """Every byte of the data reaches the customer."""
    event_id = f"evt_base64_{form}_{data.hex()}_{relay.run}"
    attributes = attributes_of(event_id) | {"content-type": content_type}
    assert post(relay, form, data, attributes).outcome == (200, "delivered")
    [message] = relay.held(event_id)
    payload = json.loads(message["text"])
    assert base64.b64decode(payload["data_base64"]) == data
    assert (payload["datacontenttype"], "data" in payload) == (content_type, False)


@forms
def test_an_event_may_have_no_data(relay: Relay, form: str) -> None:
    """An empty body means no data, not an empty string."""
    event_id = f"evt_empty_{form}_{relay.run}"
    assert post(relay, form, b"", attributes_of(event_id)).outcome == (200, "delivered")
    [message] = relay.held(event_id)
    assert json.loads(message["text"]) == {
        "specversion": "1.0",
        "id": event_id,
        "type": "user.created",
        "project": "acme",
        "source": "/users",
        "time": "2026-11-24T09:15:01Z",
        "datacontenttype": "application/json",
    }


@forms
def test_names_inside_the_data_are_never_compared(relay: Relay, form: str) -> None:
    """They may differ from the event's names, and may occur twice."""
    event_id = f"evt_inside_{form}_{relay.run}"
    data = b'{"id":"sim_1","id":"sim_2","type":"SIM","project":7}'
    assert post(relay, form, data, attributes_of(event_id)).outcome == (200, "delivered")
    assert len(relay.held(event_id)) == 1


def test_posted_by_hand_a_binary_event_has_the_content_type_of_its_data(relay: Relay) -> None:
    """The data need not be JSON."""
    event_id = f"evt_hand_{relay.run}"
    attributes = attributes_of(event_id) | {"content-type": "text/plain"}
    assert relay.post(b"hello", attributes).outcome == (200, "delivered")
    assert relay.post(b"hello", {**attributes, "ce-project": ".."}).outcome == (400, "malformed")


@forms
@pytest.mark.parametrize("missing", list(attributes_of("")))
def test_only_names_and_specversion_are_required(relay: Relay, form: str, missing: str) -> None:
    """Without a name or `ce-specversion` the push is parked. Other attributes may be missing."""
    event_id = f"evt_without_{missing}_{form}_{relay.run}"
    whole = attributes_of(event_id)
    answer = post(relay, form, DATA, {n: v for n, v in whole.items() if n != missing})
    if missing not in {"ce-specversion", *NAMES}:
        assert answer.outcome == (200, "delivered")
        [message] = relay.held(event_id)
        named = "datacontenttype" if missing == "content-type" else missing.removeprefix("ce-")
        assert named not in json.loads(message["text"])
        return
    assert answer.outcome == (200, "malformed")
    if missing in NAMES:
        letter = relay.parked(answer)
        kept = {name: getattr(letter, field) for name, field in NAMES.items()}
        assert kept == {name: None if name == missing else whole[name] for name in NAMES}


@forms
@pytest.mark.parametrize("doubled", [n for n in attributes_of("") if n != "content-type"])
def test_an_event_with_an_attribute_that_occurs_twice_is_parked(
    relay: Relay, form: str, doubled: str
) -> None:
    """Nothing says which of the two is meant. The letter has the names that occur once."""
    event_id = f"evt_twice_{doubled}_{form}_{relay.run}"
    whole = attributes_of(event_id)
    if form == WRAPPED:
        once = push(DATA, whole, event_id)
        twice = once.replace(f'"{doubled}"'.encode(), f'"{doubled}": "x", "{doubled}"'.encode())
        answer = relay.post(twice, JSON | PUSHED)
    else:
        pairs = [*(PUSHED | whole).items(), (doubled, "x")]
        answer = relay.post_pairs(DATA, [(n.encode(), v.encode()) for n, v in pairs])
    assert answer.outcome == (200, "malformed")
    assert "twice" in answer.body["detail"]
    letter = relay.parked(answer)
    kept = {name: getattr(letter, field) for name, field in NAMES.items()}
    assert kept == {name: None if name == doubled else whole[name] for name in NAMES}
    replayed = relay.commands("dead-letters", "replay", letter.id)
    assert "twice" in replayed.stdout
    assert not relay.held(event_id), "a replay must not leave the attribute out"


@forms
@pytest.mark.parametrize("wrong", ["ce-id", "ce-type", "ce-project"])
@pytest.mark.parametrize("value", ["", "..", "a/b?x=1", "x" * 257, "x" * 1025])
def test_an_event_with_a_wrong_name_is_parked_and_svix_is_not_called(
    relay: Relay, form: str, wrong: str, value: str
) -> None:
    """The rule for names is the same in attributes: a name must not lead to another application."""
    event_id = f"evt_wrong_{wrong}_{len(value)}_{form}_{relay.run}"
    before = relay.calls()
    answer = post(relay, form, DATA, attributes_of(event_id) | {wrong: value})
    assert answer.outcome == (200, "malformed")
    assert relay.calls() == before
    assert getattr(relay.parked(answer), NAMES[wrong]) in {None, ".."}


@pytest.mark.parametrize("value", ["7", "null", "{}", '["x"]', r'"\ud800"'])
@pytest.mark.parametrize("wrong", ["ce-specversion", "ce-id", "ce-source"])
def test_an_event_with_an_attribute_that_is_not_a_string_is_parked(
    relay: Relay, wrong: str, value: str
) -> None:
    """If the relay dropped the attribute, the event would differ from what the publisher sent."""
    event_id = f"evt_no_string_{wrong}_{value.encode().hex()}_{relay.run}"
    attributes = attributes_of(event_id) | {wrong: "HERE"}
    body = push(DATA, attributes, event_id).replace(b'"HERE"', value.encode())
    assert relay.post(body, JSON | PUSHED).outcome == (200, "malformed")


@forms
def test_two_pushes_that_differ_only_in_attributes_are_two_letters(relay: Relay, form: str) -> None:
    """The second must not be lost, even if the pushes have no message id."""
    answers = []
    for number in range(2):
        attributes = attributes_of(f"evt_alike_{number}_{form}_{relay.run}") | {"ce-type": ".."}
        if form == WRAPPED:
            answers.append(relay.post(push(DATA, attributes, ""), JSON | PUSHED))
        else:
            answers.append(relay.post(DATA, PUSHED | attributes))
    assert [relay.parked(answer).event_id for answer in answers] == [
        f"evt_alike_{number}_{form}_{relay.run}" for number in range(2)
    ]


@forms
@pytest.mark.parametrize("encoding", ["gzip", "br", "GZIP"])
def test_compressed_data_is_refused(relay: Relay, form: str, encoding: str) -> None:
    """An event can't say how its data is compressed, so the customer could not read it."""
    event_id = f"evt_packed_{form}_{encoding}_{relay.run}"
    attributes = attributes_of(event_id) | {"content-encoding": encoding}
    answer = post(relay, form, gzip.compress(DATA, mtime=0), attributes)
    assert answer.outcome == (200, "malformed")
    assert "compressed" in answer.body["detail"]
    letter = relay.parked(answer)
    assert (letter.event_id, letter.data) == (event_id, gzip.compress(DATA, mtime=0))
    replayed = relay.commands("dead-letters", "replay", letter.id)
    assert "malformed" in replayed.stdout
    assert not relay.held(event_id)
