"""CloudEvents' binary mode: the event's attributes are sent beside its data, not in one object.

A wrapped push has these as the message's attributes, an unwrapped push as headers.

Sources: https://github.com/google/knative-gcp/blob/main/docs/spec/pubsub-protocol-binding.md,
https://github.com/cloudevents/spec/blob/main/cloudevents/bindings/http-protocol-binding.md and
https://github.com/cloudevents/spec/blob/main/cloudevents/formats/json-format.md
"""

import base64
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_PREFIX = "ce-"
_BINARY_MARK = "ce-specversion"
_NAMES = ("ce-id", "ce-type", "ce-project")
_SURROGATE = re.compile("[\ud800-\udfff]")
# Pub/Sub's quotas: the number of attributes, and the lengths of a name and of a value. Pub/Sub
# counts lengths in bytes. We count characters, so our limits are wider.
_MOST, _LONGEST_NAME, _LONGEST_VALUE = 100, 256, 1024


class InvalidAttribute(ValueError):
    """An attribute or the data of the event cannot go to Svix unchanged.

    The message never quotes a value.
    """


@dataclass(frozen=True, slots=True)
class Attributes:
    """A message's attributes. An unwrapped push sends them as headers."""

    valid: Mapping[str, str]
    """The attributes that Pub/Sub can carry: strings within its quotas, each name once."""
    invalid: frozenset[str] = frozenset()
    """The names of all other attributes."""

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, object]], repeated: Iterable[str] = ()) -> "Attributes":
        """The attributes in these pairs of name and value.

        `repeated`: the names that occur more than once in a push's `attributes` object. `pairs` has
        each of them only once, because the parser kept the last value.
        """
        valid: dict[str, str] = {}
        invalid = set(repeated)
        for name, value in pairs:
            if name in valid or not _is_valid(name, value) or len(valid) == _MOST:
                invalid.add(name)
            else:
                valid[name] = str(value)
        if invalid:
            valid = {name: value for name, value in valid.items() if name not in invalid}
        return cls(valid, frozenset(invalid))

    @classmethod
    def of_headers(cls, headers: Mapping[str, str]) -> "Attributes":
        """Those headers of a request that CloudEvents' binary mode uses."""
        return cls.of(
            (name, _utf8(value))
            for name, value in headers.items()
            if name.startswith(_PREFIX) or name in {"content-type", "content-encoding"}
        )

    @property
    def for_replay(self) -> dict[str, str | None]:
        """The attributes that a dead letter stores.

        These are the valid ones with their values, and up to 100 invalid ones named `ce-...` or
        `content-encoding`, each with the value None. A replay reads None as invalid again.
        Otherwise it would send an event without an attribute that the publisher gave it.
        """
        invalid = (n for n in self.invalid if n.startswith(_PREFIX) or n == "content-encoding")
        names_first = sorted(invalid, key=lambda name: (name not in _NAMES, name))
        return {**self.valid, **{name[:_LONGEST_NAME]: None for name in names_first[:_MOST]}}

    @property
    def binary(self) -> bool:
        """Whether the event is in binary mode."""
        return _BINARY_MARK in self.valid or _BINARY_MARK in self.invalid

    @property
    def content_type(self) -> str | None:
        """The content type of the event's data."""
        return self._value("content-type")

    @property
    def compressed(self) -> bool:
        """Whether the event's data is compressed."""
        encoding = self._value("content-encoding") or ""
        return "content-encoding" in self.invalid or encoding.lower() not in {"", "identity"}

    def _value(self, name: str) -> str | None:
        """An attribute's value; a publisher may write its name as HTTP does: `Content-Type`."""
        return self.valid.get(name, self.valid.get(name.title()))

    def context(self) -> dict[str, Any]:
        """CloudEvents' context attributes, sorted, so that each delivery makes the same text."""
        found = {
            name.removeprefix(_PREFIX): value
            for name, value in self.valid.items()
            if name.startswith(_PREFIX)
        }
        if self.content_type is not None:
            found["datacontenttype"] = self.content_type
        return dict(sorted(found.items()))

    def structured(self, data: bytes, text: bytes | None, value: Any) -> tuple[bytes, Any]:
        """The text and the value of the event in structured mode. Raises `InvalidAttribute`.

        If `data` is usable JSON, `text` is its text and `value` its value. Otherwise `text` is
        None.
        """
        context = self.context()
        if invalid := sorted(name for name in self.invalid if name.startswith(_PREFIX)):
            which = next((f"`{name}`" for name in _NAMES if name in invalid), "an attribute")
            raise InvalidAttribute(
                f"{which} occurs twice, or is not a string that Pub/Sub could carry"
            )
        if not {"data", "data_base64"}.isdisjoint(context):
            raise InvalidAttribute(
                "an attribute is named `data` or `data_base64`, which CloudEvents reserves"
            )
        if data and text is not None and is_json(self.content_type):
            head = json.dumps({**context, "data": None}, ensure_ascii=False).encode()
            return head.removesuffix(b"null}") + text + b"}", context | {"data": value}
        if data and self.compressed:
            raise InvalidAttribute("the data is compressed: publish it uncompressed")
        if data:
            context["data_base64"] = base64.b64encode(data).decode()
        return json.dumps(context, ensure_ascii=False).encode(), context


def is_json(content_type: str | None) -> bool:
    """Whether a content type means JSON. A missing one counts as JSON."""
    media_type = (content_type or "application/json").partition(";")[0].strip().lower()
    return media_type == "application/json" or media_type.endswith("+json")


def _is_valid(name: str, value: object) -> bool:
    if not isinstance(value, str):
        return False
    is_short = len(name) <= _LONGEST_NAME and len(value) <= _LONGEST_VALUE
    return is_short and not _SURROGATE.search(name + value)


def _utf8(header: str) -> str:
    """Decode a header as UTF-8, which CloudEvents allows. HTTP servers decode it as Latin-1."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeError:
        return header
