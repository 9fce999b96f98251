"""Each form of body is read as one event. What can't be passed on unchanged is refused."""

import base64
import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from relay.envelope import EVENT_LIMIT, Event, Form, Names, Refused, read, read_again
from relay.outcome import Outcome

EVENT = {"id": "evt_1", "type": "user.created", "project": "acme", "data": {"ü": [1.5, None]}}
JSON = {"content-type": "application/json"}
PUSH_HEADERS = {"x-goog-pubsub-message-id": "77"}
PUSHED = {"user-agent": "APIs-Google; (+https://developers.google.com/webmasters/APIs-Google.html)"}
TAGS = ["data.id"]
BINARY = {
    "ce-specversion": "1.0",
    "ce-id": "evt_1",
    "ce-type": "user.created",
    "ce-project": "acme",
    "ce-source": "/sims/ü",
    "content-type": "application/json",
}


def wrapped(data: bytes, **more: Any) -> bytes:
    """A wrapped push of these bytes."""
    message = {"data": base64.b64encode(data).decode(), "messageId": "77", **more}
    return json.dumps({"message": message, "subscription": "projects/p/subscriptions/s"}).encode()


def refusal(body: bytes, headers: Mapping[str, str] = JSON) -> Refused:
    """The refusal of a body that `read` must refuse."""
    with pytest.raises(Refused) as error:
        read(body, headers, TAGS)
    return error.value


def read_headers(*pairs: tuple[str, str]) -> Headers:
    """Headers as the server passes them on: some may occur twice."""
    return Headers(raw=[(name.encode(), value.encode()) for name, value in pairs])


def test_a_bare_event_is_read_as_it_is() -> None:
    """Posted by hand, the body is the event, including its unknown fields."""
    body = json.dumps(EVENT).encode()
    event = read(body, JSON, TAGS)
    assert (event.id, event.type, event.project) == ("evt_1", "user.created", "acme")
    assert json.loads(event.text) == EVENT
    assert not event.source.pushed
    assert event.source.data == body


def test_a_wrapped_push_is_unwrapped_with_all_its_metadata() -> None:
    """The wrapped push is Pub/Sub's default form."""
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
    event = read(json.dumps(push).encode(), JSON, TAGS)
    assert json.loads(event.text) == EVENT
    source = event.source
    assert source.pushed
    assert source.data == data
    assert source.message_id == "77"
    assert source.subscription == "projects/p/subscriptions/s"
    assert source.published_at == datetime(2026, 11, 24, 1, 2, 3, 123456, tzinfo=UTC)
    assert source.delivery_attempt == 3
    assert source.attributes == {"origin": "billing"}


def test_the_older_spellings_of_a_push_are_read_too() -> None:
    """Pub/Sub uses both spellings."""
    message = {
        "data": base64.b64encode(json.dumps(EVENT).encode()).decode(),
        "message_id": "78",
        "publish_time": "2026-11-24T01:02:03Z",
    }
    source = read(json.dumps({"message": message}).encode(), {}, TAGS).source
    assert source.message_id == "78"
    assert source.published_at == datetime(2026, 11, 24, 1, 2, 3, tzinfo=UTC)


def test_a_push_without_any_metadata_is_still_read() -> None:
    """Only the data is required."""
    body = json.dumps({"message": {"data": base64.b64encode(json.dumps(EVENT).encode()).decode()}})
    event = read(body.encode(), {}, TAGS)
    assert event.source.pushed
    assert event.source.message_id is None


@pytest.mark.parametrize("junk", [7, None, [], {}, "a\nb", "x" * 2000, "\ud800", True])
def test_junk_metadata_is_dropped_and_the_event_kept(junk: Any) -> None:
    """A good event must not be lost because of its wrapping. Junk must not reach log or ledger."""
    push = json.loads(wrapped(json.dumps(EVENT).encode()))
    push["message"] |= {"messageId": junk, "publishTime": junk, "attributes": junk}
    push |= {"subscription": junk, "deliveryAttempt": junk}
    event = read(json.dumps(push).encode(), JSON, TAGS)
    assert json.loads(event.text) == EVENT
    assert event.source.message_id is None
    assert event.source.subscription is None
    assert event.source.published_at is None


def test_an_unwrapped_push_is_recognised_by_its_header() -> None:
    """The body is the event. An attribute may have replaced the content type."""
    headers = {
        "x-goog-pubsub-message-id": "77",
        "x-goog-pubsub-publish-time": "2026-11-24T01:02:03Z",
        "x-goog-pubsub-subscription-name": "projects/p/subscriptions/s",
        "content-type": "text/whatever",
    }
    event = read(json.dumps(EVENT).encode(), headers, TAGS)
    assert json.loads(event.text) == EVENT
    assert event.source.pushed
    assert event.source.message_id == "77"
    assert event.source.subscription == "projects/p/subscriptions/s"


def test_an_event_that_has_a_message_of_its_own_is_a_bare_event() -> None:
    """A push has no `id` at the top level."""
    body = json.dumps({**EVENT, "message": {"data": "bm8="}}).encode()
    assert not read(body, JSON, TAGS).source.pushed


def test_big_integers_and_unicode_are_unchanged() -> None:
    """Nothing is rounded or escaped."""
    event = {**EVENT, "n": 2**200, "s": "\u2028 \U0001f600 \x00", "f": 0.1, "e": -0.0}
    assert read(json.dumps(event).encode(), JSON, TAGS).text == json.dumps(event).encode()


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
        b'{"id":"e","type":"t","project":"p","x":"\\\\\\ud800"}',
        b'{"id":"e","type":"t","project":"p","x":"\\ud83d\\ud83d\\ude00"}',
    ],
    ids=lambda body: repr(body[:60]),
)
@pytest.mark.parametrize("form", ["bare", "wrapped", "unwrapped"])
def test_what_cannot_be_passed_on_unchanged_is_refused_in_every_form(
    body: bytes, form: str
) -> None:
    """The relay refuses such a body and changes none. A push is still recognised as a push."""
    if form == "wrapped":
        assert refusal(wrapped(body)).source.pushed
    elif form == "unwrapped":
        assert refusal(body, PUSH_HEADERS).source.pushed
    else:
        fault = refusal(body)
        assert not fault.source.pushed
        assert fault.outcome is Outcome.MALFORMED


@pytest.mark.parametrize("field", ["id", "type", "project"])
@pytest.mark.parametrize(
    "name",
    [None, 7, {}, [], True, "", ".", "..", "../..", "a/b?x=1", "a b", "a\n", "é", "x" * 257, "%2e"],
)
def test_names_that_svix_refuses_are_refused(field: str, name: Any) -> None:
    """This also keeps an event within the URL path of its own project."""
    fault = refusal(json.dumps({**EVENT, field: name}).encode())
    assert f"`{field}`" in fault.detail


@pytest.mark.parametrize("field", ["id", "type", "project"])
def test_a_missing_name_is_named(field: str) -> None:
    """A person who posts by hand reads which one is missing."""
    event = {name: value for name, value in EVENT.items() if name != field}
    assert f"`{field}` is missing" in refusal(json.dumps(event).encode()).detail


def test_names_that_svix_keeps_for_itself_are_refused() -> None:
    """Svix would take them for its own ids."""
    assert "msg_" in refusal(json.dumps({**EVENT, "id": "msg_1"}).encode()).detail
    assert "app_" in refusal(json.dumps({**EVENT, "project": "app_1"}).encode()).detail


def test_prefixed_and_nested_types_pass() -> None:
    """There is no list of types. Every type with a valid name passes."""
    for name in ("com.gigs.subscription.activated", "taxRate.updated", "user.address.created"):
        assert read(json.dumps({**EVENT, "type": name}).encode(), JSON, TAGS).type == name


@pytest.mark.parametrize("data", [None, 7, "", "!!!", "YWJj\n!", "\ud800"])
def test_a_push_without_readable_data_is_malformed_and_kept_whole(data: Any) -> None:
    """In this case the whole body is parked."""
    body = json.dumps({"message": {"data": data, "messageId": "77"}}).encode()
    fault = refusal(body)
    assert fault.source.pushed
    assert fault.source.data == body
    assert fault.source.message_id == "77"


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded"])
@pytest.mark.parametrize("body", [json.dumps(EVENT).encode(), b"a=b"])
def test_by_hand_the_content_type_must_be_json(content_type: str, body: bytes) -> None:
    """The answer is 415, and the body is not parsed."""
    assert refusal(body, {"content-type": content_type}).code == "media_type"


@pytest.mark.parametrize(
    "content_type",
    ["application/json; charset=utf-8", "application/cloudevents+json", "Text/x+JSON"],
)
def test_every_kind_of_json_is_json(content_type: str) -> None:
    """CloudEvents' media type counts as JSON too."""
    assert read(json.dumps(EVENT).encode(), {"content-type": content_type}, TAGS).id == "evt_1"


def test_compressed_bodies_are_refused_before_they_are_expanded() -> None:
    """A decompression bomb must not be expanded."""
    assert refusal(b"\x1f\x8b", {"content-encoding": "gzip"}).code == "media_type"


def test_the_digest_is_of_the_text() -> None:
    """The digest shows that an id came again with another text."""
    one, other = json.dumps(EVENT).encode(), json.dumps(EVENT, indent=1).encode()
    digests = [read(body, JSON, TAGS).payload_sha256 for body in (one, other, one)]
    assert digests[0] == hashlib.sha256(one).hexdigest() == digests[2] != digests[1]


@pytest.mark.parametrize("form", ["bare", "wrapped", "unwrapped"])
def test_the_text_is_the_publishers_own(form: str) -> None:
    """Its spaces, its escapes, its digits and its repeated members are unchanged."""
    text = (
        b' {"id": "e","type":"t", "project" :"p",\n "n": 1.000000000000000000001, "x":1e2,'
        b' "s":"\\u00e9\\/","data":{"id":"a","id":"b"}} '
    )
    body = wrapped(text) if form == "wrapped" else text
    assert read(body, PUSH_HEADERS if form == "unwrapped" else JSON, TAGS).text == text


@pytest.mark.parametrize(
    "codec", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
)
def test_a_bom_is_dropped_and_other_encodings_are_converted_to_utf_8(codec: str) -> None:
    """Svix reads UTF-8 only."""
    text = json.dumps(EVENT, ensure_ascii=False)
    event = read(text.encode(codec), JSON, TAGS)
    assert event.text == text.encode()
    assert event.source.data == text.encode(codec)


@pytest.mark.parametrize("name", ["id", "type", "project"])
@pytest.mark.parametrize("spelling", ["{}", "\\u{:04x}"])
def test_an_event_with_a_name_that_occurs_twice_is_malformed(name: str, spelling: str) -> None:
    """The customer's parser might take the other value.

    Names that occur twice deeper inside the event are passed on.
    """
    escaped = spelling.format(name if spelling == "{}" else ord(name[0])) + (
        "" if spelling == "{}" else name[1:]
    )
    body = json.dumps(EVENT)[:-1] + f', "{escaped}": "other"}}'
    fault = refusal(body.encode())
    assert fault.detail == f"`{name}` occurs twice"
    assert getattr(fault.names, name) is None
    nested = json.dumps(EVENT)[:-1] + f', "more": {{"{name}": 1, "{name}": 2}}}}'
    assert read(nested.encode(), JSON, TAGS).text == nested.encode()


def test_a_push_without_metadata_is_recognised_by_its_user_agent() -> None:
    """So a malformed event in one is parked, and not redelivered for ever."""
    assert read(json.dumps(EVENT).encode(), PUSHED, TAGS).source.pushed
    assert refusal(b"poison", PUSHED).source.pushed
    assert refusal(b"poison", PUSHED).source.form is Form.DATA


def test_eventarcs_headers_say_nothing_about_the_event() -> None:
    """They describe Eventarc's own envelope. Its body is always a wrapped push."""
    headers = {
        **PUSHED,
        "ce-specversion": "1.0",
        "ce-id": "77",
        "ce-type": "google.cloud.pubsub.topic.v1.messagePublished",
        "ce-source": "//pubsub.googleapis.com/projects/p/topics/t",
    }
    event = read(wrapped(json.dumps(EVENT).encode()), headers, TAGS)
    assert event.text == json.dumps(EVENT).encode()
    assert event.source.pushed
    assert refusal(wrapped(b"{}"), headers).detail == "`id` is missing or not a string"


@pytest.mark.parametrize(
    "message",
    [{"data": "aGVsbG8="}, {"attributes": {"from": "+1"}}, {"messageId": "sms_1", "text": "hello"}],
)
def test_in_binary_mode_the_data_may_look_like_a_wrapped_push(message: dict[str, Any]) -> None:
    """The headers name the event, so the body is its data, also in a replay."""
    body = json.dumps({"message": message}).encode()
    headers = {**PUSHED, **BINARY}
    event = read(body, headers, TAGS)
    assert (event.id, event.project) == ("evt_1", "acme")
    assert json.loads(event.text)["data"] == {"message": message}
    source = event.source
    again = read_again(source.data, source.form, source.attributes, TAGS)
    assert again.text == event.text


@pytest.mark.parametrize(
    "body",
    [
        {"message": {"text": "hello"}},
        {"message": {}},
        {"message": "data"},
    ],
)
def test_a_body_with_another_kind_of_message_is_not_a_push(body: dict[str, Any]) -> None:
    """It counts as posted by hand, and is refused."""
    assert not refusal(json.dumps(body).encode()).source.pushed


@pytest.mark.parametrize(
    "push",
    [
        b'{"message": {"data": "e30="}, "message": {"data": "e30="}}',
        b'{"message": {"data": "e30=", "data": "e30="}}',
    ],
)
def test_a_push_of_two_events_is_malformed(push: bytes) -> None:
    """Pub/Sub sends no such push, and nothing says which of the two events is meant."""
    assert "occurs twice" in refusal(push).detail


def big(size: int) -> bytes:
    """An event of this many bytes."""
    shell = len(json.dumps({**EVENT, "more": ""}))
    return json.dumps({**EVENT, "more": "x" * (size - shell)}).encode()


@pytest.mark.parametrize("size", [EVENT_LIMIT - 1, EVENT_LIMIT])
@pytest.mark.parametrize("form", ["bare", "wrapped", "unwrapped"])
def test_up_to_two_mebibytes_an_event_is_read(size: int, form: str) -> None:
    """Svix decides whether it takes the event."""
    body = wrapped(big(size)) if form == "wrapped" else big(size)
    assert read(body, PUSHED if form == "unwrapped" else JSON, TAGS).text == big(size)


@pytest.mark.parametrize("data", [big(EVENT_LIMIT + 1), b"x" * 10_000_000, b'{"a":[]},' * 10**6])
@pytest.mark.parametrize("form", ["bare", "wrapped", "unwrapped"])
def test_a_larger_event_is_rejected_with_the_names_in_its_attributes(
    data: bytes, form: str
) -> None:
    """The event is not parsed, whatever it holds. Posted by hand, it has no attributes."""
    attributes = {"ce-specversion": "1.0", "ce-id": "evt_9", "ce-project": "acme"}
    match form:
        case "wrapped":
            fault = refusal(wrapped(data, attributes=attributes))
        case "unwrapped":
            fault = refusal(data, PUSHED | attributes)
        case _:
            fault = refusal(data)
    assert (fault.outcome, fault.code) == (Outcome.REJECTED, "too_large")
    assert fault.source.data == data
    assert fault.source.pushed == (form != "bare")
    assert fault.names == (Names() if form == "bare" else Names("evt_9", None, "acme"))


def test_a_large_push_may_use_any_escapes_of_json() -> None:
    """Some encoders escape the slash and the equals sign of base64."""
    push = wrapped(big(EVENT_LIMIT)).replace(b"/", b"\\/").replace(b"=", b"\\u003d")
    assert read(push, JSON, TAGS).text == big(EVENT_LIMIT)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (b'{"id":"e","type":"t","project":"p","x":NaN}', Names("e", "t", "p")),
        (b'{"id":"e","type":"t","x":"\\ud800","project":"p"}', Names("e", "t", "p")),
        (b'{"id":"e","type":"t","project":"p","x":', Names("e", "t", "p")),
        (b'{"id":"e","x":{"type":"t"},"x" 7,"project":"p"}', Names("e")),
        (b'{"id":"e","type":"t"}', Names("e", "t")),
        (b'{"id":"e e","type":"t","project":"p"}', Names(None, "t", "p")),
        (b'{"id":"e","id":"f","type":"t","x":NaN}', Names(None, "t")),
        (b'["\\ud800"]', Names()),
        (b"\xff", Names()),
    ],
)
@pytest.mark.parametrize("headers", [JSON, PUSHED])
def test_the_readable_names_of_a_malformed_event_are_kept(
    text: bytes, names: Names, headers: Mapping[str, str]
) -> None:
    """The names help to find the event among the dead letters. Invalid names are not kept."""
    assert refusal(text, headers).names == names
    assert refusal(wrapped(text)).names == names


def test_tags_are_strings_that_svix_takes() -> None:
    """Each tag occurs once, and there are five at most. Values that Svix refuses are left out."""
    data = {"id": "sim_1", "n": 7, "email": "a@b.c", "none": None, "long": "x" * 129}
    event = {**EVENT, "data": {**data, **{f"k{n}": f"v{n}" for n in range(9)}}}
    body = json.dumps(event).encode()

    def tags(*paths: str) -> tuple[str, ...]:
        return read(body, JSON, paths).tags

    assert tags("data.id") == ("sim_1",)
    assert tags("project", "data.id", "data.id") == ("acme", "sim_1")
    assert tags("data.n", "data.email", "data.none", "data.long", "data", "data.id.x", "no") == ()
    assert tags(*(f"data.k{n}" for n in range(9))) == ("v0", "v1", "v2", "v3", "v4")


TRACE, PUBLISHERS, OTHER = (f"00-{digit * 32}-{digit * 16}-01" for digit in "abc")


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"googclient_traceparent": PUBLISHERS, "traceparent": OTHER}, PUBLISHERS),
        ({"traceparent": PUBLISHERS}, PUBLISHERS),
        ({"googclient_traceparent": "junk", "traceparent": PUBLISHERS}, PUBLISHERS),
        ({"traceparent": "junk"}, TRACE),
        ({}, TRACE),
    ],
)
def test_the_trace_is_the_publishers_or_else_the_requests(
    attributes: dict[str, str], expected: str
) -> None:
    """Google's clients and OpenTelemetry put the publisher's trace into the attributes."""
    body = wrapped(json.dumps(EVENT).encode(), attributes=attributes)
    assert read(body, {"traceparent": TRACE}, TAGS).source.traceparent == expected


@pytest.mark.parametrize("form", ["wrapped", "unwrapped"])
@pytest.mark.parametrize("data", [json.dumps(EVENT).encode(), b'{"id":"sim_1"}', b"\xff", b""])
@pytest.mark.parametrize("attributes", [{}, BINARY, {**BINARY, "content-type": "text/plain"}])
def test_a_replay_reads_the_kept_body_with_the_same_result(
    form: str, data: bytes, attributes: dict[str, str]
) -> None:
    """A replay reads the same event, or finds the same fault."""

    def first() -> Event:
        if form == "wrapped":
            return read(wrapped(data, attributes=attributes), PUSHED, TAGS)
        return read(data, read_headers(*(PUSHED | attributes).items()), TAGS)

    try:
        event = first()
    except Refused as fault:
        source = fault.source
        with pytest.raises(Refused) as again:
            read_again(source.data, source.form, source.attributes, TAGS)
        assert (again.value.detail, again.value.names) == (fault.detail, fault.names)
    else:
        source = event.source
        found = read_again(source.data, source.form, source.attributes, TAGS)
        assert (found.text, found.id, found.tags) == (event.text, event.id, event.tags)
        assert not found.source.pushed


def test_a_replay_finds_the_event_in_a_wrapped_body() -> None:
    """An operator may have repaired the wrapper in the letter."""
    event = read_again(wrapped(json.dumps(EVENT).encode()), Form.BODY, {}, TAGS)
    assert event.id == "evt_1"
    assert not event.source.pushed


def test_no_fault_repeats_what_the_body_holds() -> None:
    """Answers and logs contain the detail, and must not contain the payload."""
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
            "user-agent",
            "content-type",
            "content-encoding",
            "traceparent",
            "ce-specversion",
            *("ce-id", "ce-type", "ce-project", "ce-data", "ce-ext"),
        ]
    ),
    st.sampled_from(["1.0", "evt_1", "APIs-Google", "text/plain", "..", "é"])
    | st.text(max_size=30),
)
bodies = st.binary() | json_values.map(lambda value: json.dumps(value).encode())


@given(bodies, headers_that_matter)
@example(b'{"message": {"data": 7}}', {})
@example(b'{"message": {"data": null, "attributes": {"ce-specversion": 1}}}', {})
@example(b'{"message": {"attributes": {"ce-specversion": "1", "ce-specversion": "1"}}}', {})
def test_any_body_is_an_event_or_refused(body: bytes, headers: dict[str, str]) -> None:
    """`read` returns an event or raises `Refused`, and never anything else."""
    for form in (body, wrapped(body), wrapped(body, attributes=headers)):
        try:
            assert isinstance(read(form, headers, TAGS), Event)
        except Refused as fault:
            assert fault.outcome is Outcome.MALFORMED


@given(st.dictionaries(st.text(), json_values, max_size=5), st.sampled_from([None, 0, 3]))
def test_any_json_object_with_valid_names_is_unchanged_or_refused(
    more: dict[str, Any], indent: int | None
) -> None:
    """Each byte of the event is the publisher's."""
    event = {**more, "id": "e", "type": "t", "project": "p"}
    body = json.dumps(event, indent=indent).encode()
    try:
        assert read(body, JSON, TAGS).text == body
    except Refused:
        assert "NaN" in body.decode() or "Infinity" in body.decode() or "\\ud" in body.decode()
