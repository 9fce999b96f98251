"""Accepted JSON means the same to every parser, and refusals quote none of the data."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import strict_json

ESCAPES = ["\\ud83d", "\\ude00", "\\uD83D", "\\uDE00", "\\\\", "\\n", "\\u0041", "ud800", "x", "é"]


@given(st.lists(st.sampled_from(ESCAPES), max_size=8).map("".join))
def test_a_lone_surrogate_is_found_wherever_it_is(string: str) -> None:
    """Python's UTF-8 encoder shows what is right: it refuses lone surrogates and nothing else."""
    text = f'["{string}"]'.encode()
    _, value = strict_json.parse(text)
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        assert strict_json.has_lone_surrogate(text)
    else:
        assert not strict_json.has_lone_surrogate(text)


@pytest.mark.parametrize(
    ("text", "twice"),
    [
        (b'{"a": 1, "b": 2}', set()),
        (b'{"a": 1, "b": 2, "a": 1}', {"a"}),
        (b'{"a": 1, "\\u0061": 2, "b": 3, "b": 4, "b": 5}', {"a", "b"}),
        (b'{"a": {"b": 1, "b": 2}}', set()),
        (b'[{"a": 1, "a": 2}]', set()),
    ],
)
def test_repeated_names_are_found(text: bytes, twice: set[str]) -> None:
    """Only the object's own names count. The last value is kept, as in most parsers."""
    _, value = strict_json.parse(text)
    assert strict_json.repeated_names(value) == twice
    assert value == json.loads(text)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not valid"),
        (b"NaN", "NaN"),
        (b"[1E400]", "out of range"),
        (b"9" * 5000, "out of range"),
        (b"[" * 100_000, "nested"),
        (b'"\xed\xa0\x80"', "not valid"),
        (b"\xff\xfe{", "not valid"),
    ],
)
def test_a_refusal_says_what_is_wrong(data: bytes, words: str) -> None:
    """The message is our own, because a parser's message might quote the data."""
    with pytest.raises(strict_json.UnsafeJson, match=words):
        strict_json.parse(data)


@pytest.mark.parametrize(
    ("data", "members"),
    [
        (b'{"a": 1, "b": "two", "c": ', {"a": 1, "b": "two"}),
        (b' \n{ "a" : NaN , "b":[1], "c" 3}', {"b": [1]}),
        (b'{"a": 1, "a": 2, "b": 3', {"a": None, "b": 3}),
        (b"{7: 1}", {}),
        (b"[1, 2", {}),
        (b"", {}),
        (b'\xef\xbb\xbf{"a": 1, \xff}', {"a": 1}),
        (b'{"a": 1, "b": ' + b"[" * 100_000, {"a": 1}),
    ],
)
def test_the_beginning_of_a_broken_object_is_read(data: bytes, members: dict[str, Any]) -> None:
    """Members are read up to the fault. A member that occurs twice has no value."""
    found = strict_json.first_members(data)
    assert {name: found.get(name) for name in members} == members
    assert found.keys() - {"a"} == members.keys() - {"a"}
