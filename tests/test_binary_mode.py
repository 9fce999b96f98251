"""CloudEvents in binary mode reach Svix in the structured form of the same event."""

import base64
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from relay.envelope import Event, Names, Refused, read, read_again

ATTRIBUTES = {
    "ce-specversion": "1.0",
    "ce-id": "evt_1",
    "ce-type": "user.created",
    "ce-project": "acme",
    "ce-source": "/sims/ü",
    "ce-time": "2026-11-24T01:02:03Z",
    "content-type": "application/json",
}
STRUCTURED = {
    "specversion": "1.0",
    "id": "evt_1",
    "type": "user.created",
    "project": "acme",
    "source": "/sims/ü",
    "time": "2026-11-24T01:02:03Z",
    "datacontenttype": "application/json",
}
CONTEXT = {name for name in ATTRIBUTES if name.startswith("ce-")}
UNWRAPPED = {"user-agent": "APIs-Google"}
TAGS = ["data.id"]


def wrapped(data: bytes, attributes: Any) -> Event:
    """Read a wrapped push in binary mode."""
    message = {"data": base64.b64encode(data).decode(), "attributes": attributes}
    return read(json.dumps({"message": message}).encode(), {}, TAGS)


def unwrapped(data: bytes, attributes: dict[str, str]) -> Event:
    """Read an unwrapped push in binary mode."""
    pairs = (UNWRAPPED | attributes).items()
    headers = Headers(raw=[(name.encode(), value.encode()) for name, value in pairs])
    return read(data, headers, TAGS)


FORMS = pytest.mark.parametrize("form", [wrapped, unwrapped])


@FORMS
def test_the_attributes_become_the_event_and_the_body_its_data(form: Any) -> None:
    """The data is unchanged, and the event's bytes are the same in both forms of push.

    They do not depend on the order of the attributes.
    """
    data = b'{"id": "sim_1", "n": 1.000000000000000000001, "project": "mine", "id": "sim_2"}'
    event = form(data, ATTRIBUTES)
    assert (event.id, event.type, event.project) == ("evt_1", "user.created", "acme")
    assert json.loads(event.text) == {**STRUCTURED, "data": json.loads(data)}
    assert event.text.endswith(b'"data": ' + data + b"}")
    assert event.tags == ("sim_2",)
    assert event.source.pushed
    assert event.source.data == data
    assert event.text == wrapped(data, dict(reversed(ATTRIBUTES.items()))).text


@FORMS
@pytest.mark.parametrize(
    ("data", "content_type"),
    [
        (b"\xff\x00", "application/octet-stream"),
        (b"7", "text/plain"),
        (b"not json", "application/json"),
        (b'{"x":NaN}', "application/json"),
        (b'"\\ud800"', "application/json"),
    ],
)
def test_data_that_is_not_json_goes_as_base64(form: Any, data: bytes, content_type: str) -> None:
    """Every byte of the data reaches the customer."""
    value = json.loads(form(data, ATTRIBUTES | {"content-type": content_type}).text)
    assert base64.b64decode(value.pop("data_base64")) == data
    assert value == STRUCTURED | {"datacontenttype": content_type}


@FORMS
def test_compressed_data_is_refused(form: Any) -> None:
    """An event can't say how its data is compressed. JSON passes, whatever the attribute says."""
    attributes = ATTRIBUTES | {"content-encoding": "gzip"}
    assert "compressed" in refusal(form, b"\x1f\x8b", attributes).detail
    assert json.loads(form(b'{"a": 1}', attributes).text)["data"] == {"a": 1}
    plain = ATTRIBUTES | {"content-encoding": "identity"}
    assert "data_base64" in json.loads(form(b"\x1f\x8b", plain).text)


@FORMS
def test_an_event_without_data_has_none(form: Any) -> None:
    """An empty body means no data, not an empty string."""
    assert json.loads(form(b"", ATTRIBUTES).text) == STRUCTURED


def test_a_message_may_leave_its_data_out() -> None:
    """Pub/Sub leaves empty fields out."""
    for message in ({"attributes": ATTRIBUTES}, {"attributes": ATTRIBUTES, "data": None}):
        body = json.dumps({"message": message}).encode()
        assert json.loads(read(body, {}, TAGS).text) == STRUCTURED


@FORMS
@pytest.mark.parametrize("data", [b'{"a": 1}', b"[1, 2]", b'"s"', b"null", b"7"])
def test_without_a_content_type_json_is_json(form: Any, data: bytes) -> None:
    """Any JSON value may be the data."""
    attributes = {n: v for n, v in ATTRIBUTES.items() if n != "content-type"}
    value = json.loads(form(data, attributes).text)
    assert value["data"] == json.loads(data)
    assert "datacontenttype" not in value


@FORMS
def test_a_body_that_is_an_event_is_structured_whatever_the_headers_say(form: Any) -> None:
    """The attributes do not change it."""
    body = b'{"id": "inner", "type": "t", "project": "p"}'
    event = form(body, ATTRIBUTES)
    assert event.text == body
    assert (event.id, event.project) == ("inner", "p")


@FORMS
def test_names_inside_the_data_are_never_compared(form: Any) -> None:
    """The data may have an `id` and a `type` of its own, even repeatedly."""
    data = b'{"id": "other", "id": "another", "type": "SIM"}'
    assert form(data, ATTRIBUTES).id == "evt_1"


def test_without_ce_specversion_it_is_not_binary() -> None:
    """Attributes of other publishers may have the same names as the context's."""
    with pytest.raises(Refused):
        wrapped(b"{}", {n: v for n, v in ATTRIBUTES.items() if n != "ce-specversion"})


def refusal(form: Any, data: bytes, attributes: Any) -> Refused:
    """The refusal of an event that must be refused."""
    with pytest.raises(Refused) as error:
        form(data, attributes)
    assert error.value.source.pushed
    return error.value


@FORMS
@pytest.mark.parametrize("name", ["ce-id", "ce-type", "ce-project"])
def test_a_missing_name_is_named(form: Any, name: str) -> None:
    """The other names are kept for the dead letter."""
    attributes = {n: v for n, v in ATTRIBUTES.items() if n != name}
    fault = refusal(form, b'{"id":"x","type":"y","project":7}', attributes)
    assert fault.detail == f"`{name.removeprefix('ce-')}` is missing or not a string"
    assert {fault.names.id, fault.names.type, fault.names.project} == {
        *({"evt_1", "user.created", "acme"} - {ATTRIBUTES[name]}),
        None,
    }


@FORMS
@pytest.mark.parametrize("name", ["ce-id", "ce-type", "ce-project"])
@pytest.mark.parametrize("value", ["", "..", "a/b", "a b", "é", "x" * 257, "x" * 2000])
def test_a_wrong_name_is_refused(form: Any, name: str, value: str) -> None:
    """Names in attributes follow the same rule as names in the body."""
    assert "`" in refusal(form, b"{}", ATTRIBUTES | {name: value}).detail


@pytest.mark.parametrize("value", [7, None, {}, [], True, "\ud800"])
@pytest.mark.parametrize("name", list(ATTRIBUTES))
def test_an_attribute_that_is_not_a_string_is_refused(name: str, value: Any) -> None:
    """Without the attribute, the event would differ from what the publisher sent.

    The content type may be left out, because it is not a part of the event.
    """
    if name == "content-type":
        assert "datacontenttype" not in json.loads(wrapped(b"{}", ATTRIBUTES | {name: value}).text)
    else:
        fault = refusal(wrapped, b"{}", ATTRIBUTES | {name: value})
        assert "not a string" in fault.detail


@pytest.mark.parametrize("name", [name for name in ATTRIBUTES if name.startswith("ce-")])
def test_an_attribute_that_occurs_twice_is_refused(name: str) -> None:
    """It may occur twice among the headers, or in the message of a wrapped push.

    The dead letter keeps its name without a value, so that a replay refuses the event too.
    """
    pairs = [*(UNWRAPPED | ATTRIBUTES).items(), (name, "other")]
    headers = Headers(raw=[(n.encode(), v.encode()) for n, v in pairs])
    with pytest.raises(Refused) as error:
        read(b"{}", headers, TAGS)
    assert "occurs twice" in error.value.detail
    assert error.value.source.attributes[name] is None
    message = json.dumps({"message": {"data": "e30=", "attributes": ATTRIBUTES}})
    twice = message.replace(f'"{name}"', f'"{name}": "other", "{name}"')
    with pytest.raises(Refused) as error:
        read(twice.encode(), {}, TAGS)
    assert "occurs twice" in error.value.detail
    assert error.value.source.attributes[name] is None


@FORMS
@pytest.mark.parametrize("name", ["ce-data", "ce-data_base64"])
def test_an_attribute_cannot_have_the_name_of_the_data(form: Any, name: str) -> None:
    """The structured event would have its `data` twice."""
    assert "named `data` or `data_base64`" in refusal(form, b"{}", ATTRIBUTES | {name: "x"}).detail


@given(
    st.fixed_dictionaries(
        {name: st.sampled_from(["good", "missing", "twice", "wrong"]) for name in ATTRIBUTES}
    )
)
def test_attributes_missing_doubled_and_wrong_in_every_combination(states: dict[str, str]) -> None:
    """Both forms of push and a replay agree: every attribute that is present must be good."""
    pairs = [
        (name, "x" * 1025 if states[name] == "wrong" else good)
        for name, good in ATTRIBUTES.items()
        if states[name] != "missing"
    ]
    doubled = [(name, "other") for name, state in states.items() if state == "twice"]
    attributes = ", ".join(f"{json.dumps(n)}: {json.dumps(v)}" for n, v in pairs + doubled)
    push = f'{{"message": {{"data": "e30=", "attributes": {{{attributes}}}}}}}'.encode()
    raw = [(n.encode(), v.encode()) for n, v in [*UNWRAPPED.items(), *pairs, *doubled]]
    good = {name for name, state in states.items() if state == "good"}
    binary = states["ce-specversion"] != "missing"
    wanted = binary and {"ce-id", "ce-type", "ce-project"} <= good
    wanted &= all(name in good or states[name] == "missing" for name in CONTEXT)
    for body, headers in ((push, Headers()), (b"{}", Headers(raw=raw))):
        try:
            event = read(body, headers, TAGS)
        except Refused as fault:
            assert not wanted
            assert fault.source.pushed
            named = [getattr(fault.names, n) for n in ("id", "type", "project")]
            kept = [ATTRIBUTES[f"ce-{n}"] for n in ("id", "type", "project") if f"ce-{n}" in good]
            assert [name for name in named if name] == (kept if binary else [])
            source = fault.source
            with pytest.raises(Refused, match=re.escape(fault.detail)):
                read_again(source.data, source.form, source.attributes, TAGS)
        else:
            assert wanted
            context = {n.removeprefix("ce-"): ATTRIBUTES[n] for n in good & CONTEXT}
            if "content-type" in good:
                context["datacontenttype"] = ATTRIBUTES["content-type"]
            assert json.loads(event.text) == context | {"data": {}}
            source = event.source
            again = read_again(source.data, source.form, source.attributes, TAGS)
            assert again.text == event.text


def test_by_hand_an_event_may_be_in_binary_mode_too() -> None:
    """The content type is that of the data, so it need not be JSON."""
    headers = ATTRIBUTES | {"content-type": "text/plain"}
    event = read(b"hello", headers, TAGS)
    assert not event.source.pushed
    assert json.loads(event.text)["data_base64"] == "aGVsbG8="


def test_the_names_of_a_binary_event_that_is_too_large_are_kept() -> None:
    """They are in the attributes, and nothing else is known of the event."""
    fault = refusal(wrapped, b"x" * (2 * 1024 * 1024 + 1), ATTRIBUTES)
    assert fault.names == Names("evt_1", "user.created", "acme")
