"""Svix's two kinds of listing, over ids in ascending order.

By time (messages, attempts): newest first. `iterator` leads to older items and `prevIterator` to
newer ones. `after` without an iterator begins at the *oldest* page after that time, whose
`iterator` leads to what is older still. Nothing is found further than 90 days from where a page
begins, unless `before` or `after` says so.

Plain (applications, endpoints): in the order of their ids, or against it.

Source: Svix's open-source server and its answers; `tests/svix` holds this against it.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from local.svix import ids

PAGE = 50  # items, where the caller does not say
LARGEST_PAGE = 250
_SIGHT = timedelta(days=90)  # how far from where it begins a listing by time sees
_FUTURE = timedelta(hours=1)  # how far ahead ids may be, where clocks differ


@dataclass(frozen=True, slots=True)
class Asked:
    """What a listing's query says. `iterator` begins with `-` where it leads to newer items."""

    limit: int = PAGE
    iterator: str | None = None
    before: datetime | None = None
    after: datetime | None = None
    ascending: bool = False
    """Of a plain listing only."""

    @property
    def is_backward(self) -> bool:
        """Whether the iterator leads back to where the listing came from."""
        return self.iterator is not None and self.iterator.startswith("-")

    @property
    def position(self) -> str | None:
        """The id that the iterator names."""
        return self.iterator.removeprefix("-") if self.iterator else None


@dataclass(frozen=True, slots=True)
class Page:
    """The ids of one page, in the order they are shown, and whether there are no more that way."""

    ids: list[str]
    done: bool


def by_time(held: Sequence[str], prefix: str, asked: Asked, now: datetime) -> Page:
    """A page, newest first. Raises ValueError where the iterator is not an id."""
    lower: list[str] = []
    upper = [ids.first(prefix, now + _FUTURE)]
    if asked.before:
        lower.append(ids.first(prefix, asked.before - _SIGHT))
        upper.append(ids.first(prefix, asked.before))
    if asked.after:
        lower.append(ids.first(prefix, asked.after))
        if not asked.before:
            upper.append(ids.last(prefix, asked.after + _SIGHT))
    is_bounded = bool(asked.before or asked.after)
    if asked.position:
        at = ids.time(prefix, asked.position)
        (lower if asked.is_backward else upper).append(asked.position)
        if not is_bounded and asked.is_backward:
            upper.append(ids.last(prefix, at + _SIGHT))
        elif not is_bounded:
            lower.append(ids.first(prefix, at - _SIGHT))
    elif not is_bounded:
        lower.append(ids.first(prefix, now - _SIGHT))
    start = bisect.bisect_right(held, max(lower))
    end = max(start, bisect.bisect_left(held, min(upper)))
    is_oldest_first = asked.is_backward or bool(
        asked.after and not asked.before and not asked.position
    )
    done = end - start <= asked.limit
    if is_oldest_first:
        end = min(end, start + asked.limit)
    else:
        start = max(start, end - asked.limit)
    return Page(list(reversed(held[start:end])), done)


def plain(held: Sequence[str], asked: Asked) -> Page:
    """A page in the order of the ids, or against it."""
    start, end = 0, len(held)
    goes_up = asked.ascending is not asked.is_backward
    if asked.position and goes_up:
        start = bisect.bisect_right(held, asked.position)
    elif asked.position:
        end = bisect.bisect_left(held, asked.position)
    done = end - start <= asked.limit
    if goes_up:
        end = min(end, start + asked.limit)
    else:
        start = max(start, end - asked.limit)
    page = list(held[start:end])
    return Page(page if asked.ascending else page[::-1], done)
