"""Svix's two kinds of listing, over ids in ascending order.

Listings by time (messages, attempts) are newest first. `iterator` leads to older items and
`prevIterator` to newer ones. With `after` and no iterator, the first page is the *oldest* one after
that time, and its `iterator` leads to items that are older still. A page reaches no further than 90
days from where it begins, unless `before` or `after` is given.

Plain listings (applications, endpoints) are in the order of their ids, or in reverse.

Source: Svix's open-source server and its answers. `tests/svix` compares this module with it.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from local.svix import ids

PAGE = 50  # items, if the caller names no limit
LARGEST_PAGE = 250
_REACH = timedelta(days=90)  # how far a page of a listing by time reaches
_FUTURE = timedelta(hours=1)  # how far in the future ids may be, because clocks differ


@dataclass(frozen=True, slots=True)
class Query:
    """The query of a listing. `iterator` begins with `-` if it leads to newer items."""

    limit: int = PAGE
    iterator: str | None = None
    before: datetime | None = None
    after: datetime | None = None
    ascending: bool = False
    """Only plain listings use it."""

    @property
    def is_backward(self) -> bool:
        """Whether the iterator leads back to the previous page."""
        return self.iterator is not None and self.iterator.startswith("-")

    @property
    def position(self) -> str | None:
        """The id that the iterator names."""
        return self.iterator.removeprefix("-") if self.iterator else None


@dataclass(frozen=True, slots=True)
class Page:
    """One page: its ids in the order shown, and whether it is the last in this direction."""

    ids: list[str]
    done: bool


def by_time(held: Sequence[str], prefix: str, query: Query, now: datetime) -> Page:
    """A page, newest first. Raises ValueError if the iterator is not an id."""
    lower: list[str] = []
    upper = [ids.first(prefix, now + _FUTURE)]
    if query.before:
        lower.append(ids.first(prefix, query.before - _REACH))
        upper.append(ids.first(prefix, query.before))
    if query.after:
        lower.append(ids.first(prefix, query.after))
        if not query.before:
            upper.append(ids.last(prefix, query.after + _REACH))
    is_bounded = bool(query.before or query.after)
    if query.position:
        at = ids.time(prefix, query.position)
        (lower if query.is_backward else upper).append(query.position)
        if not is_bounded and query.is_backward:
            upper.append(ids.last(prefix, at + _REACH))
        elif not is_bounded:
            lower.append(ids.first(prefix, at - _REACH))
    elif not is_bounded:
        lower.append(ids.first(prefix, now - _REACH))
    start = bisect.bisect_right(held, max(lower))
    end = max(start, bisect.bisect_left(held, min(upper)))
    is_oldest_first = query.is_backward or bool(
        query.after and not query.before and not query.position
    )
    done = end - start <= query.limit
    if is_oldest_first:
        end = min(end, start + query.limit)
    else:
        start = max(start, end - query.limit)
    return Page(list(reversed(held[start:end])), done)


def plain(held: Sequence[str], query: Query) -> Page:
    """A page in the order of the ids, or in reverse."""
    start, end = 0, len(held)
    goes_up = query.ascending is not query.is_backward
    if query.position and goes_up:
        start = bisect.bisect_right(held, query.position)
    elif query.position:
        end = bisect.bisect_left(held, query.position)
    done = end - start <= query.limit
    if goes_up:
        end = min(end, start + query.limit)
    else:
        start = max(start, end - query.limit)
    page = list(held[start:end])
    return Page(page if query.ascending else page[::-1], done)
