"""Three bodies become one event; what can't be carried faithfully is refused, by anyone's fault."""

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.envelope import Event, Malformed, read

EVENT = {"id": "evt_1", "type": "user.created", "project": "acme", "data": {"ü": [1.5, None]}}
JSON = {"content-type": "application/json"}
PUSH_HEADERS = {"x-goog-pubsub-message-id": "77"}


def wrapped(data: bytes, **more: Any) -> bytes:
    """A wrapped push of these bytes."""
    message = {"data": base64.b64encode(data).decode(), "messageId": "77", **more}
    return json.dumps({"message": message, "subscription": "projects/p/subscriptions/s"}).encode()


def refusal(body: bytes, headers: dict[str, str] = JSON) -> Malformed:
    """What `read` says of a body it must refuse."""
    with pytest.raises(Malformed) as error:
        read(body, headers)
    return error.value


def test_a_bare_event_is_read_as_it_is() -> None:
    """By hand: the body is the event, unknown fields included."""
    body = json.dumps(EVENT).encode()
    event = read(body, JSON)
    assert (event.id, event.type, event.project) == ("evt_1", "user.created", "acme")
    assert event.payload == EVENT
    assert not event.source.pushed
    assert event.source.data == body


def test_a_wrapped_push_is_unwrapped_with_all_its_metadata() -> None:
    """Pub/Sub's default form."""
    data = json.dumps(EVENT).encode()
    push = {
        "message": {
            "data": base64.b64encode(data).decode(),
            "messageId": "77",
            "message_id": "77",
            "publishTime": "2026-11-24T01:02:03.123456789Z",
            "attributes": {"origin": "billing"},
            "orderingKey": "k",
        },
        "subscription": "projects/p/subscriptions/s",
        "deliveryAttempt": 3,
    }
    event = read(json.dumps(push).encode(), JSON)
    assert event.payload == EVENT
    source = event.source
    assert source.pushed
    assert source.data == data
    assert source.message_id == "77"
    assert source.subscription == "projects/p/subscriptions/s"
    assert source.published_at == datetime(2026, 11, 24, 1, 2, 3, 123456, tzinfo=UTC)
    assert source.delivery_attempt == 3
    assert source.attributes == {"origin": "billing"}


def test_the_older_spellings_of_a_push_are_read_too() -> None:
    """Both spellings occur."""
    message = {
        "data": base64.b64encode(json.dumps(EVENT).encode()).decode(),
        "message_id": "78",
        "publish_time": "2026-11-24T01:02:03Z",
    }
    source = read(json.dumps({"message": message}).encode(), {}).source
    assert source.message_id == "78"
    assert source.published_at == datetime(2026, 11, 24, 1, 2, 3, tzinfo=UTC)


def test_a_push_without_any_metadata_is_still_read() -> None:
    """Optional means optional."""
    body = json.dumps({"message": {"data": base64.b64encode(json.dumps(EVENT).encode()).decode()}})
    event = read(body.encode(), {})
    assert event.source.pushed
    assert event.source.message_id is None


@pytest.mark.parametrize("junk", [7, None, [], {}, "a\nb", "x" * 2000, "\ud800", True])
def test_junk_metadata_is_dropped_and_the_event_kept(junk: Any) -> None:
    """The event is sound: it must not be lost for its wrapping, nor junk reach log or ledger."""
    push = json.loads(wrapped(json.dumps(EVENT).encode()))
    push["message"] |= {"messageId": junk, "publishTime": junk, "attributes": junk}
    push |= {"subscription": junk, "deliveryAttempt": junk}
    event = read(json.dumps(push).encode(), JSON)
    assert event.payload == EVENT
    assert event.source.message_id is None
    assert event.source.subscription is None
    assert event.source.published_at is None


def test_an_unwrapped_push_is_told_by_its_header() -> None:
    """The body is the event, and an attribute may have replaced the content type."""
    headers = {
        "x-goog-pubsub-message-id": "77",
        "x-goog-pubsub-publish-time": "2026-11-24T01:02:03Z",
        "x-goog-pubsub-subscription-name": "projects/p/subscriptions/s",
        "content-type": "text/whatever",
    }
    event = read(json.dumps(EVENT).encode(), headers)
    assert event.payload == EVENT
    assert event.source.pushed
    assert event.source.message_id == "77"
    assert event.source.subscription == "projects/p/subscriptions/s"


def test_an_event_that_has_a_message_of_its_own_is_a_bare_event() -> None:
    """The top-level id tells it from a push."""
    body = json.dumps({**EVENT, "message": {"data": "bm8="}}).encode()
    assert not read(body, JSON).source.pushed


def test_big_integers_and_unicode_pass_value_for_value() -> None:
    """Nothing is rounded or escaped away."""
    event = {**EVENT, "n": 2**200, "s": "\u2028 \U0001f600 \x00", "f": 0.1, "e": -0.0}
    assert read(json.dumps(event).encode(), JSON).payload == event


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"no",
        b"\xff\xfe\x00",
        b'"a"',
        b"[]",
        b"null",
        b"7",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"id":"e","type":"t","project":"p","x":NaN}',
        b'{"id":"e","type":"t","project":"p","x":-Infinity}',
        b'{"id":"e","type":"t","project":"p","x":1E400}',
        b'{"id":"e","type":"t","project":"p","x":' + b"1" * 5000 + b"}",
        b'{"id":"e","type":"t","project":"p","x":"\\ud800"}',
        b'{"id":"e","type":"t","project":"p","\\udfff":1}',
        b'{"id":"e","type":"t","project":"p","x":"\xed\xa0\x80"}',
    ],
    ids=lambda body: repr(body[:60]),
)
@pytest.mark.parametrize("form", ["bare", "wrapped", "unwrapped"])
def test_what_cannot_be_carried_is_refused_in_every_form(body: bytes, form: str) -> None:
    """Refused, not changed, whichever way it comes, and a push is known as one."""
    if form == "wrapped":
        assert refusal(wrapped(body)).source.pushed
    elif form == "unwrapped":
        assert refusal(body, PUSH_HEADERS).source.pushed
    else:
        fault = refusal(body)
        assert not fault.source.pushed
        assert fault.status == 400


@pytest.mark.parametrize("field", ["id", "type", "project"])
@pytest.mark.parametrize(
    "name",
    [None, 7, {}, [], True, "", ".", "..", "../..", "a/b?x=1", "a b", "a\n", "é", "x" * 257, "%2e"],
)
def test_names_that_svix_refuses_are_refused(field: str, name: Any) -> None:
    """Also the boundary that keeps an event within its own project's path."""
    fault = refusal(json.dumps({**EVENT, field: name}).encode())
    assert f"`{field}`" in fault.detail


@pytest.mark.parametrize("field", ["id", "type", "project"])
def test_a_missing_name_is_named(field: str) -> None:
    """Whoever posts by hand reads which."""
    event = {name: value for name, value in EVENT.items() if name != field}
    assert f"`{field}` is missing" in refusal(json.dumps(event).encode()).detail


def test_names_that_svix_keeps_for_itself_are_refused() -> None:
    """They would be taken for Svix's own ids."""
    assert "msg_" in refusal(json.dumps({**EVENT, "id": "msg_1"}).encode()).detail
    assert "app_" in refusal(json.dumps({**EVENT, "project": "app_1"}).encode()).detail


def test_prefixed_and_nested_types_pass() -> None:
    """No list of types: what names itself properly is carried."""
    for name in ("com.gigs.subscription.activated", "taxRate.updated", "user.address.created"):
        assert read(json.dumps({**EVENT, "type": name}).encode(), JSON).type == name


@pytest.mark.parametrize("data", [None, 7, "", "!!!", "YWJj\n!", "\ud800"])
def test_a_push_without_readable_data_is_malformed_and_kept_whole(data: Any) -> None:
    """What is parked is then the whole body."""
    body = json.dumps({"message": {"data": data, "messageId": "77"}}).encode()
    fault = refusal(body)
    assert fault.source.pushed
    assert fault.source.data == body
    assert fault.source.message_id == "77"


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded"])
@pytest.mark.parametrize("body", [json.dumps(EVENT).encode(), b"a=b"])
def test_by_hand_the_content_type_must_be_json(content_type: str, body: bytes) -> None:
    """415, before anything is said of the body."""
    assert refusal(body, {"content-type": content_type}).status == 415


@pytest.mark.parametrize(
    "content_type",
    ["application/json; charset=utf-8", "application/cloudevents+json", "Text/x+JSON"],
)
def test_every_kind_of_json_is_json(content_type: str) -> None:
    """CloudEvents' own type among them."""
    assert read(json.dumps(EVENT).encode(), {"content-type": content_type}).id == "evt_1"


def test_compressed_bodies_are_refused_before_they_are_expanded() -> None:
    """No bomb is ever unpacked."""
    assert refusal(b"\x1f\x8b", {"content-encoding": "gzip"}).status == 415


def test_the_digest_ignores_the_order_of_keys_and_nothing_else() -> None:
    """A publisher that reorders keys has not changed the payload."""
    ordered = read(json.dumps(EVENT).encode(), JSON)
    reordered = read(json.dumps(dict(reversed(EVENT.items()))).encode(), JSON)
    changed = read(json.dumps({**EVENT, "more": 1}).encode(), JSON)
    assert ordered.payload_sha256 == reordered.payload_sha256 != changed.payload_sha256


def test_no_fault_repeats_what_the_body_holds() -> None:
    """A detail goes into answers and logs."""
    secret = "hunter2"
    bodies = [secret.encode(), json.dumps({**EVENT, "id": secret + "/"}).encode()]
    assert all(secret not in refusal(body).detail for body in bodies)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
headers_that_matter = st.dictionaries(
    st.sampled_from(
        [
            "x-goog-pubsub-message-id",
            "x-goog-pubsub-publish-time",
            "content-type",
            "content-encoding",
        ]
    ),
    st.text(max_size=30),
)


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()), headers_that_matter)
def test_any_body_is_an_event_or_malformed(body: bytes, headers: dict[str, str]) -> None:
    """Nothing else ever comes out."""
    try:
        assert isinstance(read(body, headers), Event)
    except Malformed as fault:
        assert fault.status in {400, 415}


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_any_json_object_with_proper_names_is_carried_or_refused_whole(
    more: dict[str, Any],
) -> None:
    """Value for value, or not at all."""
    event = {**more, "id": "e", "type": "t", "project": "p"}
    body = json.dumps(event).encode()
    try:
        assert read(body, JSON).payload == json.loads(body)
    except Malformed:
        assert "NaN" in body.decode() or "Infinity" in body.decode() or "\\ud" in body.decode()
