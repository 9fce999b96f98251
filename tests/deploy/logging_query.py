"""Evaluates the part of Cloud Logging's query language that deploy.sh and its files use.

Source: https://cloud.google.com/logging/docs/view/logging-query-language
"""

import re
from typing import Any

_SEVERITIES = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_TOKEN = re.compile(r'\s*(\(|\)|AND\b|OR\b|([\w.]+)(>=|=|>|:)("[^"]*"|\*|\w+))')


def matches(query: str, entry: dict[str, Any]) -> bool:
    """Whether a log entry matches the query."""
    words, at = [], 0
    query = query.strip()
    while at < len(query):
        token = _TOKEN.match(query, at)
        assert token, f"not understood: {query[at:]}"
        at = token.end()
        _, path, operator, text = token.groups()
        words.append(str(_holds(entry, path, operator, text)) if path else token[1].lower())
    return bool(eval(" ".join(words)))  # noqa: S307 - True, False, and, or, parentheses


def extract(extractor: str, entry: dict[str, Any]) -> Any:
    """The value that a metric's extractor, such as `EXTRACT(jsonPayload.outcome)`, extracts."""
    taken = re.fullmatch(r"EXTRACT\(([\w.]+)\)", extractor)
    assert taken, extractor
    return _value(entry, taken[1])


def _value(entry: dict[str, Any], path: str) -> Any:
    value: Any = entry
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _holds(entry: dict[str, Any], path: str, operator: str, text: str) -> bool:
    value, wanted = _value(entry, path), text.strip('"')
    if operator == ":":
        assert text == "*"
        return value is not None
    if operator == "=":
        return str(value) == wanted
    if value is None:
        return False
    if path == "severity":
        return _SEVERITIES.index(value) >= _SEVERITIES.index(wanted)
    if path == "timestamp":
        return bool(value >= wanted)
    assert operator == ">"
    return bool(value > int(wanted))
