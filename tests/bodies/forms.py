"""The six forms of body in which an event may come, made from one sample event."""

import base64
import json
from collections.abc import Mapping
from typing import Any

from tests.function import JSON, ROOT, wrapped

PUSHED = {"user-agent": "APIs-Google; (+https://developers.google.com/webmasters/APIs-Google.html)"}
"""The User-Agent of every push from Pub/Sub."""

FORMS = [
    "wrapped",
    "unwrapped with metadata",
    "unwrapped without metadata",
    "by hand",
    "binary wrapped",
    "binary unwrapped",
]
PUSHES = [form for form in FORMS if form != "by hand"]


def event(event_id: str, **more: Any) -> dict[str, Any]:
    """An event like the samples. `more` replaces and adds fields."""
    sample = json.loads((ROOT / "local" / "events" / "01-user.created.json").read_text())
    return {**sample, "id": event_id, "project": "acme", **more}


def request(form: str, event: Mapping[str, Any]) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of a request with this event in one of the forms."""
    text, message_id = json.dumps(event).encode(), f"{form}.{event['id']}".replace(" ", "-")
    match form:
        case "wrapped":
            return wrapped(text, message_id), JSON | PUSHED
        case "unwrapped with metadata":
            return text, PUSHED | metadata(message_id)
        case "unwrapped without metadata":
            return text, PUSHED
        case "by hand":
            return text, JSON
        case "binary wrapped":
            attributes, data = binary(event)
            return push(data, attributes, message_id), JSON | PUSHED
        case "binary unwrapped":
            attributes, data = binary(event)
            return data, PUSHED | metadata(message_id) | attributes
        case _:
            raise ValueError(form)


def metadata(message_id: str) -> dict[str, str]:
    """The headers with which Pub/Sub writes the metadata of an unwrapped push."""
    return {
        "x-goog-pubsub-message-id": message_id,
        "x-goog-pubsub-subscription-name": "projects/local/subscriptions/relay",
    }


def binary(event: Mapping[str, Any]) -> tuple[dict[str, str], bytes]:
    """The attributes and the data of an event in CloudEvents' binary mode."""
    attributes = {
        f"ce-{name}": value
        for name, value in event.items()
        if name not in {"data", "datacontenttype"}
    }
    data = json.dumps(event["data"]).encode()
    return {**attributes, "content-type": event["datacontenttype"]}, data


def push(data: bytes, attributes: Mapping[str, Any], message_id: str = "1") -> bytes:
    """A wrapped push of a message with these attributes."""
    message = {
        "data": base64.b64encode(data).decode(),
        "attributes": dict(attributes),
        "messageId": message_id,
    }
    subscription = "projects/local/subscriptions/relay"
    return json.dumps({"message": message, "subscription": subscription}).encode()
