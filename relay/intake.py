"""Reading a body: what may be read when, and how much at once.

A small body is read at once. A larger one is admitted whole before its first byte is read, and
never more than the limit is admitted at one moment, from there until the request is answered. What
waits stays unread: the sender cannot send on (back-pressure), and the server holds little of it.
Projects take turns where they are known before the body is read, which is where the event's
attributes are headers. Bodies that take long to parse are parsed one at a time, with the loop free
between them, so that the pace of small events never depends on large ones.
"""

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from starlette.requests import ClientDisconnect

from relay.envelope import EVENT_LIMIT, PUSH_LIMIT, Event, Refused, read, source_of
from relay.outcome import TOO_LARGE, Outcome

_SMALL = 16 * 1024
"""Bytes of a body that is read at once: 3,000 of these are 48 MiB, and an event has about 1 KiB."""

_PARSED_ALONE = 64 * 1024
"""Bytes from which on a body takes a millisecond and more to parse."""

ARRIVAL_SECONDS = 20.0
"""What a body has to arrive once it may be read: 14 MB at 6 Mbit/s."""


class NotAdmitted(Exception):
    """There was no room for the body in time; none of it was read."""

    def __init__(self) -> None:
        super().__init__("too many large bodies at once: this one was not read in time")


@dataclass(eq=False, slots=True)
class _Place:
    """One body that waits."""

    size: int
    admitted: asyncio.Future[None]


class Intake:
    """Admits bodies, `limit` bytes at one moment; to be built in the running loop.

    `limit` is at least `PUSH_LIMIT`. `arrival_seconds` is what a body has to arrive.
    """

    def __init__(
        self, limit: int, clock: Callable[[], float], arrival_seconds: float = ARRIVAL_SECONDS
    ) -> None:
        self._free = limit
        self._clock = clock
        self._arrival_seconds = arrival_seconds
        self._lines: OrderedDict[str | None, deque[_Place]] = OrderedDict()
        """Who waits, by project; the project whose turn is next stands first."""
        self._parsing = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def admit(
        self, headers: Mapping[str, str], last_moment: float
    ) -> AsyncIterator["Admission"]:
        """Wait until the body may be read; to be left when the request is answered.

        `last_moment` is on the clock. Raises `NotAdmitted`.
        """
        size = _size(headers)
        admission = Admission(size, headers, self._arrival_seconds, self._parsing)
        if size <= _SMALL or size > PUSH_LIMIT:  # that is refused, unread
            yield admission
            return
        await self._enter(size, headers.get("ce-project"), last_moment)
        try:
            yield admission
        finally:
            self._leave(size)

    async def _enter(self, size: int, project: str | None, last_moment: float) -> None:
        if not self._lines and size <= self._free:
            self._free -= size
            return
        place = _Place(size, asyncio.get_running_loop().create_future())
        self._lines.setdefault(project, deque()).append(place)
        try:
            async with asyncio.timeout(last_moment - self._clock()):
                await place.admitted
        except BaseException as reason:
            if place.admitted.done() and not place.admitted.cancelled():
                self._leave(size)
            else:
                place.admitted.cancel()
                self._admit_next()  # it may have stood before one that there is room for
            if isinstance(reason, TimeoutError):
                raise NotAdmitted from None
            raise

    def _leave(self, size: int) -> None:
        self._free += size
        self._admit_next()

    def _admit_next(self) -> None:
        """Admit those whose turn it is, while there is room. Nobody is overtaken by a smaller."""
        while self._lines:
            project, line = next(iter(self._lines.items()))
            while line and line[0].admitted.cancelled():
                line.popleft()  # it gave up
            if line:
                if line[0].size > self._free:
                    return
                place = line.popleft()
                self._free -= place.size
                place.admitted.set_result(None)
            if line:
                self._lines.move_to_end(project)
            else:
                del self._lines[project]


class Admission:
    """Leave to read one body."""

    def __init__(
        self, size: int, headers: Mapping[str, str], seconds: float, parsing: asyncio.Lock
    ) -> None:
        self._size = size
        self._headers = headers
        self._seconds = seconds
        self._parsing = parsing

    async def event(self, chunks: AsyncIterator[bytes], tag_paths: Sequence[str]) -> Event:
        """The event in the body that these chunks are. Raises `Refused`."""
        body = await self._read(chunks)
        if len(body) <= _PARSED_ALONE:
            return read(body, self._headers, tag_paths)
        async with self._parsing:
            try:
                return read(body, self._headers, tag_paths)
            finally:
                del body
                await asyncio.sleep(0)  # whoever waits has the loop before the next is parsed

    async def _read(self, chunks: AsyncIterator[bytes]) -> bytes:
        if self._size > PUSH_LIMIT:
            raise self._too_large()
        parts: list[bytes] = []
        arrived = 0
        try:
            async with asyncio.timeout(self._seconds):
                async for chunk in chunks:
                    parts.append(chunk)
                    arrived += len(chunk)
                    if arrived > max(self._size, _SMALL):
                        raise self._too_large()
        except TimeoutError:
            raise self._incomplete(f"did not arrive within {self._seconds:g} s") from None
        except ClientDisconnect:
            raise self._incomplete("broke off") from None
        return b"".join(parts)

    def _too_large(self) -> Refused:
        """Pub/Sub sends none of that size, so this is answered to whoever posted it."""
        source = replace(source_of(self._headers), pushed=False)
        detail = "the body is larger than any event that Svix takes, and than any push"
        return Refused(Outcome.REJECTED, detail, source, code=TOO_LARGE)

    def _incomplete(self, how: str) -> Refused:
        """What was not read to its end says nothing about the event: it is never parked."""
        source = source_of(self._headers)
        return Refused(Outcome.INCOMPLETE, f"the body {how}", source)


def _size(headers: Mapping[str, str]) -> int:
    """How many bytes the body has, or may have."""
    declared = headers.get("content-length", "")
    if declared.isdecimal():
        return int(declared)
    return PUSH_LIMIT if source_of(headers).pushed else EVENT_LIMIT
