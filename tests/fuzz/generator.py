"""Generates bad requests. The same seed makes the same requests.

Most begin as a good event, posted by hand or in a push, and then a few things in it are broken.
Some are raw bytes, some break off, and a few are about as large as a limit. Nothing is asserted
here.
"""

import base64
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_LONGEST = 60_000
"""Bytes of the longest body, except for `_sized`. Under 64 KiB, so that memory can be compared."""
_LIMITS = [2**14, 2**16, 2**20, 2**21, 14 * 2**20]
"""Limits in bytes: read immediately, parsed immediately, Svix's limit, ours, and a push's."""
_LENGTHS = [128, 256, 1024]
"""Limits of length: of a tag, of a name, and of an attribute's value."""

_SCALARS: list[Any] = [
    *(None, True, False, 0, -1, 1.5, 1e308, 10**30, "", " ", "x", "é", "\u0000", "\n", "\ud800"),
    *("..", ".", "../..", "a/b?x=1", "a%2fb", "msg_1", "app_1", "a" * 256, "a" * 257, "\r\nX: y"),
    *(
        "user.created",
        "2026-11-24T09:15:01Z",
        "9999-99-99",
        "💥",
        "\u202e",
        "${jndi:x}",
        "%s%n",
        {},
        [],
    ),
]
_TOKENS = [
    *(b"NaN", b"-Infinity", b"1E400", b"-0", b"9" * 5000, b"\\ud800", b"\xff\xfe", b"\x00", b"{"),
    *(b"}", b"[" * 500, b'"', b"\\", b",", b":", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"1e-999"),
]
_FIELDS = ["id", "type", "project", "data", "object", "time", "version", "previousData", "actor"]
_PUSH_FIELDS = ["message", "subscription", "deliveryAttempt", "id"]
_MESSAGE_FIELDS = ["data", "messageId", "message_id", "publishTime", "attributes", "orderingKey"]
_HEADERS = {
    "content-type": [
        *("application/json", "application/cloudevents+json; charset=utf-8", "text/plain", ""),
        *("application/json; charset=utf-16", "multipart/form-data; boundary=x", "a" * 2000),
    ],
    "content-encoding": ["gzip", "identity", "br", "deflate, gzip", ""],
    "x-goog-pubsub-message-id": ["1", "", "a" * 2000, "\x80\xff", "../1", "1 2"],
    "x-goog-pubsub-publish-time": ["2026-11-24T09:15:01Z", "yesterday", "", "0001-01-01T00:00:00Z"],
    "x-goog-pubsub-subscription-name": ["projects/p/subscriptions/s", "\xe9", "x" * 1025],
    "traceparent": ["00-" + "a" * 32 + "-" + "b" * 16 + "-01", "00-zz-zz-01", ""],
    "x-cloud-trace-context": ["a" * 32 + "/1;o=1", "/", "x" * 500],
    "user-agent": ["APIs-Google; (+https://developers.google.com/webmasters/APIs-Google.html)", ""],
}
_BINARY = {  # CloudEvents' binary mode: headers, or a message's attributes
    "ce-specversion": ["1.0", "0.3", ""],
    "ce-id": ["evt_1", "msg_1", "a/b", "\xe9", ""],
    "ce-type": ["user.created", "x" * 257],
    "ce-project": ["acme", "..", "app_1"],
    "ce-source": ["/users", "%F0%9F", "%zz"],
    "ce-time": ["2026-11-24T09:15:01Z", "yesterday"],
    "ce-UPPER": ["x"],
    "ce-data": ["x"],
    "ce-data_base64": ["eA=="],
    "content-type": ["application/json", "text/plain", "application/octet-stream"],
    "content-encoding": ["gzip", "identity"],
}
_RARE = {"ce-UPPER", "ce-data", "ce-data_base64", "content-encoding"}


@dataclass(frozen=True, slots=True)
class Request:
    """One request. Its number and the seed reproduce it."""

    number: int
    method: str
    path: str
    headers: list[tuple[str, str]]
    """A name may occur twice."""
    body: bytes
    sent: int
    """How many bytes of the body are sent before the sender disconnects; usually all."""

    @property
    def breaks_off(self) -> bool:
        """Whether the sender disconnects before the end of the body."""
        return self.sent < len(self.body)


def requests(seed: int, count: int) -> Iterator[Request]:
    """`count` requests. Each has its own random source, so that a single one can be reproduced."""
    for number in range(count):
        yield request(seed, number)


def request(seed: int, number: int) -> Request:
    """The request with this number."""
    rng = random.Random(f"{seed}/{number}")  # noqa: S311 - repeatable, not secret
    headers = {"content-type": "application/json"}
    for name, values in _HEADERS.items():
        if rng.random() < 0.06:
            headers[name] = rng.choice(values)
    if rng.random() < 0.1:
        headers |= _binary(rng)
    method, path = "POST", "/notifications"
    if rng.random() < 0.02:
        method = rng.choice(["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
    if rng.random() < 0.02:
        path = rng.choice(["/", "/notifications/", "/notifications?x=1", "/%00", "/..%2f", "/a b"])
    pairs = list(headers.items())
    if rng.random() < 0.05:
        name, value = rng.choice(pairs)
        pairs.append((name, rng.choice([value, "other"])))
    body = _body(rng, number)
    sent = len(body)
    if (method, path) == ("POST", "/notifications") and rng.random() < 0.02:
        sent = rng.randrange(len(body) + 1)
    return Request(number, method, path.replace(" ", "%20"), pairs, body, sent)


def _body(rng: random.Random, number: int) -> bytes:
    if rng.random() < 0.1:
        return rng.randbytes(rng.choice([0, 1, 7, 300, 5000]))
    event = _event(rng, number)
    body = _encoded(rng, event)
    if rng.random() < 0.002:
        return _sized(rng, body)
    shape = rng.random()
    if shape < 0.5:
        body = _encoded(rng, _push(rng, body))
        if rng.random() < 0.1:  # an attribute or a field of the message occurs twice
            name = rng.choice([*_BINARY, *_MESSAGE_FIELDS]).encode()
            body = body.replace(b'"%s":' % name, b'"%s": "other", "%s":' % (name, name), 1)
    if rng.random() < 0.3:
        body = _damaged(rng, body)
    return body[:_LONGEST]


def _sized(rng: random.Random, body: bytes) -> bytes:
    """A body that is about as large as one of the limits, wrapped in a push or not."""
    size = rng.choice(_LIMITS)
    filler = rng.choice([b"x", b"\\n", b"[]", b'{"a":[]},', b"\xff"])
    padded = (body[:-1] + b',"more":"' + filler * (size // len(filler)))[: size - 2]
    padded += b'"}' + b" " * rng.randint(-1, 1)
    if rng.random() < 0.5:
        data = base64.b64encode(padded).decode()
        return json.dumps({"message": {"data": data, "messageId": "1"}}).encode()
    return padded


def _binary(rng: random.Random) -> dict[str, str]:
    """Attributes of binary mode. Most are good; some are missing or wrong."""
    found = {
        name: values[0] if rng.random() < 0.8 else rng.choice(values)
        for name, values in _BINARY.items()
        if rng.random() < (0.05 if name in _RARE else 0.9)
    }
    if found and rng.random() < 0.1:
        found[rng.choice(list(found))] = "x" * (rng.choice(_LENGTHS) + rng.randint(-1, 1))
    if rng.random() < 0.02:
        found |= {f"ce-x{number}": "x" for number in range(rng.randint(90, 110))}
    return found


def _event(rng: random.Random, number: int) -> Any:
    event: dict[str, Any] = {
        "id": f"evt_{rng.randrange(max(1, number // 2 + 1))}",  # some occurred before
        "type": rng.choice(["user.created", "taxRate.updated", "com.gigs.subscription.activated"]),
        "project": rng.choice(["acme", "globex", "initech"]),
        "data": {"email": "ada@example.com", "n": rng.random()},
    }
    _break(rng, event, _FIELDS)
    return event if rng.random() < 0.98 else [event]


def _push(rng: random.Random, data: bytes) -> Any:
    encoded = base64.b64encode(data).decode()
    if rng.random() < 0.05:
        encoded = rng.choice([encoded[1:], encoded + "=", "_-" + encoded, " " + encoded, "é"])
    message: dict[str, Any] = {"data": encoded, "messageId": str(rng.randrange(10**16))}
    if rng.random() < 0.2:
        attributes: dict[str, Any] = dict(_binary(rng))
        _break(rng, attributes, [*_BINARY])
        message["attributes"] = attributes
    _break(rng, message, _MESSAGE_FIELDS)
    push: dict[str, Any] = {"message": message, "subscription": "projects/p/subscriptions/s"}
    _break(rng, push, _PUSH_FIELDS)
    return push


def _break(rng: random.Random, value: dict[str, Any], fields: list[str]) -> None:
    while rng.random() < 0.35:
        name = rng.choice(fields)
        if rng.random() < 0.3:
            value.pop(name, None)
        else:
            value[name] = _value(rng, 0)


def _value(rng: random.Random, depth: int) -> Any:
    kind = rng.random()
    if kind < 0.8 or depth > 4:
        return rng.choice(_SCALARS)
    if kind < 0.9:
        return [_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    keys = ("id", "message", "data", "x\n", "")
    return {rng.choice(keys): _value(rng, depth + 1) for _ in range(rng.randrange(4))}


def _encoded(rng: random.Random, value: Any) -> bytes:
    if rng.random() < 0.05 and isinstance(value, dict) and value:
        twice = json.dumps({rng.choice(list(value)): rng.choice(_SCALARS)})
        return f"{json.dumps(value)[:-1]}, {twice[1:]}".encode()
    if rng.random() < 0.8:
        return json.dumps(value).encode()
    codec = rng.choice(["utf-8", "utf-16", "utf-32", "utf-8-sig"])
    return json.dumps(value, ensure_ascii=False, indent=1).encode(codec, "surrogatepass")


def _damaged(rng: random.Random, body: bytes) -> bytes:
    damaged = bytearray(body)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(damaged) + 1)
        match rng.randrange(5):
            case 0:
                damaged[at:at] = rng.choice(_TOKENS)
            case 1:
                del damaged[at : at + rng.randint(1, 20)]
            case 2:
                damaged[at : at + 1] = rng.randbytes(1)
            case 3:
                damaged[at:at] = damaged[at : at + rng.randint(1, 50)]
            case _:
                damaged.extend(rng.randbytes(rng.randint(1, 10)))
    return bytes(damaged)
