"""JSON, read strictly: what Python would change on the way, or read differently, is refused.

An event's text goes to Svix as it came. It is parsed only to check it and to read a few values, so
whatever could mean another thing to the next parser must be found here.
"""

import json
import math
import re
from collections import Counter
from typing import Any, NoReturn

_BOM = "\ufeff"
_A_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_NO_LONE_SURROGATE = re.compile(
    rb"""(?: [^\\]++
           | \\ u [dD][89abAB][0-9a-fA-F]{2} \\ u [dD][c-fC-F][0-9a-fA-F]{2}  # a pair
           | \\ (?! u [dD][89a-fA-F] ) .                                      # another escape
         )*+""",
    re.VERBOSE | re.DOTALL,
)


class Unfaithful(ValueError):
    """Bytes that are not JSON, or JSON that cannot be carried as it is. Repeats none of it."""


class _Doubled(dict[str, Any]):
    """An object in which some names stand more than once; the last value is kept."""

    names: frozenset[str]


def parse(data: bytes) -> tuple[bytes, Any]:
    """The text in UTF-8, and its value.

    The text is `data` itself, but for a BOM, which is dropped, and for UTF-16 and UTF-32, which
    are recoded. Lone surrogates in escapes are left to `has_lone_surrogate`.

    Raises `Unfaithful`.
    """
    encoding = json.detect_encoding(data)
    try:
        text = data.decode(encoding)
        value = _STRICT.decode(text)
    except Unfaithful:
        raise
    except RecursionError:
        raise Unfaithful("nested too deeply") from None
    except ValueError:  # JSONDecodeError, UnicodeDecodeError, integers beyond Python's digits
        raise Unfaithful("no valid JSON, or a number out of range") from None
    return data if encoding == "utf-8" else text.encode(), value


def has_lone_surrogate(text: bytes) -> bool:
    """Whether valid JSON holds half of a surrogate pair as an escape: no UTF-8 can carry it."""
    return bool(_A_SURROGATE.search(text)) and not _NO_LONE_SURROGATE.fullmatch(text)


def doubled(value: object) -> frozenset[str]:
    """The names that stand more than once in an object that `parse` made."""
    return value.names if isinstance(value, _Doubled) else frozenset()


def first_members(data: bytes) -> dict[str, Any]:
    """The members at the beginning of an object that is not valid as a whole."""
    text = data.decode(json.detect_encoding(data), "replace").lstrip(_BOM).lstrip()
    members: dict[str, Any] = {}
    separator, at = "{", 0
    try:
        while text.startswith(separator, at):
            name, at = _LENIENT.raw_decode(text, _past_space(text, at + 1))
            at = _past_space(text, at)
            if not isinstance(name, str) or not text.startswith(":", at):
                break
            value, at = _LENIENT.raw_decode(text, _past_space(text, at + 1))
            members[name] = None if name in members else value
            separator, at = ",", _past_space(text, at)
    except (ValueError, RecursionError):
        pass  # here it breaks
    return members


_SPACE = re.compile(r"[ \t\n\r]*")


def _past_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    counts = Counter(name for name, _ in pairs)
    doubled = _Doubled(value)
    doubled.names = frozenset(name for name, count in counts.items() if count > 1)
    return doubled


def _refuse_constant(_: str) -> NoReturn:
    raise Unfaithful("NaN and Infinity are not JSON")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise Unfaithful("a number out of range")
    return number


_STRICT = json.JSONDecoder(
    parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_object
)
_LENIENT = json.JSONDecoder()
