"""Each log line carries the publisher's trace, so that Cloud Logging shows it in that trace."""

import json

import pytest

from tests.bodies.conftest import Relay
from tests.bodies.forms import PUSHED, event, metadata, push
from tests.function import JSON, wrapped


def trace(digit: str) -> str:
    """A trace that consists of this digit."""
    return f"00-{digit * 32}-{digit * 16}-01"


GOOGLES, OPEN_TELEMETRYS = {"googclient_traceparent": trace("a")}, {"traceparent": trace("b")}
REQUESTS = {"traceparent": trace("c")}


def logged(relay: Relay, message_id: str) -> str | None:
    """The digit of the trace with which a push was logged."""
    [line] = relay.logged(message_id)
    found = line.get("logging.googleapis.com/trace")
    if found is None:
        return None
    digit: str = found[-1]
    project = relay.settings["GOOGLE_CLOUD_PROJECT"]
    assert found == f"projects/{project}/traces/{digit * 32}"
    assert line["logging.googleapis.com/spanId"] == digit * 16
    return digit


@pytest.mark.parametrize(
    ("attributes", "headers", "expected"),
    [
        (GOOGLES, REQUESTS, "a"),
        (OPEN_TELEMETRYS, REQUESTS, "b"),
        (GOOGLES | OPEN_TELEMETRYS, REQUESTS, "a"),
        ({}, REQUESTS, "c"),
        ({"traceparent": "junk"}, REQUESTS, "c"),
        ({"traceparent": "junk"}, {}, None),
    ],
)
def test_a_wrapped_push_is_logged_under_its_publishers_trace(
    relay: Relay, attributes: dict[str, str], headers: dict[str, str], expected: str | None
) -> None:
    """Google's and OpenTelemetry's libraries write the trace into the message.

    Without it, the request's trace is used.
    """
    name = f"evt_trace_{len(attributes)}_{expected}_{len(headers)}_{relay.run}"
    text = json.dumps(event(name)).encode()
    relay.post(push(text, attributes, name), JSON | PUSHED | headers)
    assert logged(relay, name) == expected


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [(GOOGLES | REQUESTS, "a"), (OPEN_TELEMETRYS, "b"), ({}, None)],
)
def test_an_unwrapped_push_has_its_attributes_among_its_headers(
    relay: Relay, attributes: dict[str, str], expected: str | None
) -> None:
    """The server must not drop a header because its name has an underscore."""
    name = f"evt_trace_unwrapped_{expected}_{relay.run}"
    relay.post(json.dumps(event(name)).encode(), PUSHED | metadata(name) | attributes)
    assert logged(relay, name) == expected


def test_a_parked_push_is_logged_under_its_trace_too(relay: Relay) -> None:
    """The trace helps the publisher to find the cause."""
    name = f"trace.parked.{relay.run}"
    assert relay.post(push(b"{", GOOGLES, name), JSON | PUSHED).outcome == (200, "malformed")
    assert logged(relay, name) == "a"
    name = f"trace.unreadable.{relay.run}"
    body = wrapped(b"", name).replace(
        b'"data": ""', b'"data": 7, "attributes": {"traceparent": "%s"}' % trace("b").encode()
    )
    assert relay.post(body, JSON | PUSHED).outcome == (200, "malformed")
    assert logged(relay, name) == "b"
