"""Parses JSON strictly: refuses what another parser may read differently.

Three such things are not refused here: repeated names, escapes of lone surrogates, and integers
that are too large for a double (up to Python's limit of 4,300 digits). `envelope.py` looks for the
surrogates, and for repeats of the names that it needs. Other repeats and the integers go to Svix.

An event's text goes to Svix as it came. Only a BOM is dropped, and other encodings are changed to
UTF-8. The relay parses the text only to check it and to read a few values. Svix and the customer
parse the same text.
"""

import json
import math
import re
from collections import Counter
from typing import Any, NoReturn

_BOM = "\ufeff"
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_NO_LONE_SURROGATE = re.compile(
    rb"""(?: [^\\]++
           | \\ u [dD][89abAB][0-9a-fA-F]{2} \\ u [dD][c-fC-F][0-9a-fA-F]{2}  # a pair
           | \\ (?! u [dD][89a-fA-F] ) .                                      # another escape
         )*+""",
    re.VERBOSE | re.DOTALL,
)


class UnsafeJson(ValueError):
    """The bytes are not JSON, or are JSON that parsers read differently.

    The message quotes nothing of the bytes.
    """


class _ObjectWithRepeats(dict[str, Any]):
    """An object in which some names occur more than once. The last value of each is kept."""

    repeated: frozenset[str]


def parse(data: bytes) -> tuple[bytes, Any]:
    """The text in UTF-8, and its value. Raises `UnsafeJson`.

    The text is `data` itself, except that a BOM is dropped, and UTF-16 and UTF-32 are recoded.
    Escapes of lone surrogates pass: `has_lone_surrogate` finds them.
    """
    encoding = json.detect_encoding(data)
    try:
        text = data.decode(encoding)
        value = _STRICT.decode(text)
    except UnsafeJson:
        raise
    except RecursionError:
        raise UnsafeJson("nested too deeply") from None
    except ValueError:  # JSONDecodeError, UnicodeDecodeError, integers with too many digits
        raise UnsafeJson("not valid, or a number is out of range") from None
    return data if encoding == "utf-8" else text.encode(), value


def has_lone_surrogate(text: bytes) -> bool:
    """Whether valid JSON has an escape of half a surrogate pair, which UTF-8 cannot encode."""
    return bool(_SURROGATE_ESCAPE.search(text)) and not _NO_LONE_SURROGATE.fullmatch(text)


def repeated_names(value: object) -> frozenset[str]:
    """The names that occur more than once in an object that `parse` returned."""
    return value.repeated if isinstance(value, _ObjectWithRepeats) else frozenset()


def first_members(data: bytes) -> dict[str, Any]:
    """The members of an invalid object, up to its first fault. A repeated member becomes None."""
    text = data.decode(json.detect_encoding(data), "replace").lstrip(_BOM).lstrip()
    members: dict[str, Any] = {}
    separator, at = "{", 0
    try:
        while text.startswith(separator, at):
            name, at = _LENIENT.raw_decode(text, _skip_space(text, at + 1))
            at = _skip_space(text, at)
            if not isinstance(name, str) or not text.startswith(":", at):
                break
            value, at = _LENIENT.raw_decode(text, _skip_space(text, at + 1))
            members[name] = None if name in members else value
            separator, at = ",", _skip_space(text, at)
    except (ValueError, RecursionError):
        pass  # the first fault
    return members


_SPACE = re.compile(r"[ \t\n\r]*")


def _skip_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    counts = Counter(name for name, _ in pairs)
    with_repeats = _ObjectWithRepeats(value)
    with_repeats.repeated = frozenset(name for name, count in counts.items() if count > 1)
    return with_repeats


def _refuse_constant(_: str) -> NoReturn:
    raise UnsafeJson("NaN and Infinity are not JSON")


def _parse_float(text: str) -> float:
    if math.isinf(number := float(text)):
        raise UnsafeJson("a number is out of range")
    return number


_STRICT = json.JSONDecoder(
    parse_constant=_refuse_constant, parse_float=_parse_float, object_pairs_hook=_build_object
)
_LENIENT = json.JSONDecoder()
