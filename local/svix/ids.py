"""Svix's ids: a prefix and a KSUID with milliseconds, which sort by time as text.

An id is twenty bytes in base 62: four bytes of seconds since 2014, one byte of units of 4 ms, and
fifteen random bytes. Two ids of the same 4 ms sort at random, here as in Svix.

Source: https://github.com/segmentio/ksuid, and the variant in https://crates.io/crates/svix-ksuid
"""

import secrets
from datetime import UTC, datetime, timedelta

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_VALUES = {digit: value for value, digit in enumerate(_DIGITS)}
_EPOCH = datetime.fromtimestamp(1_400_000_000, UTC)
_LENGTH = 27  # characters
_RANDOM_BITS = 15 * 8


def new(prefix: str, at: datetime) -> str:
    """A new id of this time."""
    return _encode(prefix, at, secrets.randbits(_RANDOM_BITS))


def first(prefix: str, at: datetime) -> str:
    """The lowest id of this time, as a bound for listings."""
    return _encode(prefix, at, 0)


def last(prefix: str, at: datetime) -> str:
    """The highest id of this time."""
    return _encode(prefix, at, (1 << _RANDOM_BITS) - 1)


def time(prefix: str, text: str) -> datetime:
    """When an id was made. Raises ValueError if it is not an id with this prefix."""
    digits = text.removeprefix(prefix)
    if not text.startswith(prefix) or len(digits) != _LENGTH or not _VALUES.keys() >= set(digits):
        raise ValueError(f"not an id that begins with {prefix}")
    number = 0
    for digit in digits:
        number = number * len(_DIGITS) + _VALUES[digit]
    units = number >> _RANDOM_BITS
    return _EPOCH + timedelta(seconds=units >> 8, milliseconds=(units & 0xFF) * 4)


def _encode(prefix: str, at: datetime, random: int) -> str:
    since = at - _EPOCH
    seconds = since.days * 86_400 + since.seconds
    number = ((seconds << 8 | since.microseconds // 4_000) << _RANDOM_BITS) | random
    digits = []
    for _ in range(_LENGTH):
        number, digit = divmod(number, len(_DIGITS))
        digits.append(_DIGITS[digit])
    return prefix + "".join(reversed(digits))
