"""CloudEvents' binary mode: the event's attributes stand beside its data, not around it.

In a Pub/Sub message they are the message's attributes, in an unwrapped push its headers.

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
_MARK = "ce-specversion"
_SURROGATE = re.compile("[\ud800-\udfff]")
_MOST, _LONGEST_NAME, _LONGEST = 100, 256, 1024  # Pub/Sub's quotas; characters


class Uncarried(ValueError):
    """An attribute of the event cannot be carried as it is. The text names it where it may."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """A message's attributes, or the headers that they have become."""

    kept: Mapping[str, str]
    """Those that Pub/Sub can carry: strings, within its quotas, each once."""
    lost: frozenset[str] = frozenset()
    """The names of the others."""

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, object]], twice: Iterable[str] = ()) -> "Attributes":
        """`twice`: names that are known to stand more than once."""
        kept: dict[str, str] = {}
        lost = set(twice)
        for name, value in pairs:
            if name in kept or not _is_proper(name, value) or len(kept) == _MOST:
                lost.add(name)
            else:
                kept[name] = str(value)
        if lost:
            kept = {name: value for name, value in kept.items() if name not in lost}
        return cls(kept, frozenset(lost))

    @classmethod
    def of_headers(cls, headers: Mapping[str, str]) -> "Attributes":
        """What may be CloudEvents' of a request's headers."""
        return cls.of(
            (name, _utf8(value))
            for name, value in headers.items()
            if name.startswith(_PREFIX) or name in {"content-type", "content-encoding"}
        )

    @property
    def for_replay(self) -> dict[str, str | None]:
        """What a replay needs: those that are kept, and None for each that is lost and matters.

        Read again, None is lost again: else a replay would send an event that lacks an attribute.
        """
        lost = (n for n in self.lost if n.startswith(_PREFIX) or n == "content-encoding")
        names_first = sorted(lost, key=lambda name: (name not in _NAMES, name))
        return {**self.kept, **{name[:_LONGEST_NAME]: None for name in names_first[:_MOST]}}

    @property
    def binary(self) -> bool:
        """Whether the event is in binary mode."""
        return _MARK in self.kept or _MARK in self.lost

    @property
    def content_type(self) -> str | None:
        """Of the event's data."""
        return self.kept.get("content-type", self.kept.get("Content-Type"))

    @property
    def compressed(self) -> bool:
        """Whether they say that the event's data is compressed."""
        encoding = self.kept.get("content-encoding", self.kept.get("Content-Encoding", ""))
        return "content-encoding" in self.lost or encoding.lower() not in {"", "identity"}

    def context(self) -> dict[str, Any]:
        """CloudEvents' context attributes, in an order that is the same in every delivery."""
        found = {
            name.removeprefix(_PREFIX): value
            for name, value in self.kept.items()
            if name.startswith(_PREFIX)
        }
        if self.content_type is not None:
            found["datacontenttype"] = self.content_type
        return dict(sorted(found.items()))

    def structured(self, data: bytes, text: bytes | None, value: Any) -> tuple[bytes, Any]:
        """The structured form of the event with this data: its text, and its value.

        `text` and `value` are the data's where it is JSON; `text` is None where it is not.

        Raises `Uncarried`.
        """
        context = self.context()
        if lost := sorted(name for name in self.lost if name.startswith(_PREFIX)):
            which = next((f"`{name}`" for name in _NAMES if name in lost), "an attribute")
            raise Uncarried(f"{which} stands twice, or is not a string that Pub/Sub could carry")
        if not {"data", "data_base64"}.isdisjoint(context):
            raise Uncarried("an attribute has the name of the data")
        if data and text is not None and is_json(self.content_type):
            head = json.dumps({**context, "data": None}, ensure_ascii=False).encode()
            return head.removesuffix(b"null}") + text + b"}", context | {"data": value}
        if data and self.compressed:
            raise Uncarried("the data is compressed: publish it as it is")
        if data:
            context["data_base64"] = base64.b64encode(data).decode()
        return json.dumps(context, ensure_ascii=False).encode(), context


_NAMES = ("ce-id", "ce-type", "ce-project")


def is_json(content_type: str | None) -> bool:
    """Whether this says that something is JSON; what says nothing is taken for it."""
    media_type = (content_type or "application/json").partition(";")[0].strip().lower()
    return media_type == "application/json" or media_type.endswith("+json")


def _is_proper(name: str, value: object) -> bool:
    if not isinstance(value, str):
        return False
    short = len(name) <= _LONGEST_NAME and len(value) <= _LONGEST
    return short and not _SURROGATE.search(name + value)


def _utf8(header: str) -> str:
    """HTTP servers read headers as Latin-1, and CloudEvents' may hold UTF-8."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeError:
        return header
