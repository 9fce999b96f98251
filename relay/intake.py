"""Decides when each request's body is read, so that large bodies do not fill the memory.

A small body is read immediately. A large one must be admitted before its first byte is read. The
total size of admitted bodies never exceeds the limit. A body counts from its admission until its
request is answered.

A waiting body stays unread. So its sender must stop sending (back-pressure), and the server buffers
little of it. Projects are admitted round-robin. Before a body is read, its project is known only if
the request's headers name it (binary mode, see `envelope.py`). All other bodies share one line.

Bodies over 64 KiB are parsed one at a time, in at most half of the event loop's time. So they do
not delay small events.
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
"""Bytes of the largest body that is read immediately. Even 3,000 such bodies take only 47 MiB.
An event usually has about 1 KiB."""

_QUICKLY_PARSED = 64 * 1024
"""Bytes of the largest body that is parsed immediately. A larger one takes over a millisecond."""

ARRIVAL_SECONDS = 20.0
"""The maximum time in which a body arrives after its admission: 14 MB at 6 Mbit/s."""


class NotAdmitted(Exception):
    """There was no room for the body in time. None of it was read."""

    def __init__(self) -> None:
        super().__init__("too many large bodies are waiting: this one was not read in time")


@dataclass(eq=False, slots=True)
class _Place:
    """A waiting body's place in line."""

    size: int
    admitted: asyncio.Future[None]


class Intake:
    """Admits bodies of at most `limit` bytes in total. Must be created in the running loop.

    `limit` is at least `PUSH_LIMIT`. `clock` gives seconds. `arrival_seconds` is the maximum time
    in which a body arrives.
    """

    def __init__(
        self, limit: int, clock: Callable[[], float], arrival_seconds: float = ARRIVAL_SECONDS
    ) -> None:
        self._free = limit
        self._clock = clock
        self._arrival_seconds = arrival_seconds
        self._lines: OrderedDict[str | None, deque[_Place]] = OrderedDict()
        """The waiting bodies by project. The next project comes first."""
        self._large_parses = _LargeParses(clock)

    @contextlib.asynccontextmanager
    async def admit(
        self, headers: Mapping[str, str], last_moment: float
    ) -> AsyncIterator["Admission"]:
        """Wait until the body may be read. The context must last until the request is answered.

        Raises `NotAdmitted` if the body is not admitted by `last_moment`, in seconds of the clock.
        """
        size = _size(headers)
        admission = Admission(size, headers, self._arrival_seconds, self._large_parses)
        if size <= _SMALL or size > PUSH_LIMIT:  # a body over PUSH_LIMIT is refused unread
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
                self._admit_next()  # there may be room for the body behind it
            if isinstance(reason, TimeoutError):
                raise NotAdmitted from None
            raise

    def _leave(self, size: int) -> None:
        self._free += size
        self._admit_next()

    def _admit_next(self) -> None:
        """Admit the next bodies while there is room.

        The next body is never overtaken, even if it does not fit and a later one would.
        """
        while self._lines:
            project, line = next(iter(self._lines.items()))
            while line and line[0].admitted.cancelled():
                line.popleft()  # its request no longer waits
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


class _LargeParses:
    """Parses of large bodies, one at a time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Wait for the other large parses. After this one, pause for as long as it took.

        One iteration of the event loop between two parses would not be enough: uvloop accepts one
        connection per iteration, and a small event needs several iterations.
        """
        async with self._lock:
            began = self._clock()
            try:
                yield
            finally:
                await asyncio.sleep(self._clock() - began)


class Admission:
    """The right to read one body."""

    def __init__(
        self,
        size: int,
        headers: Mapping[str, str],
        seconds: float,
        large_parses: "_LargeParses",
    ) -> None:
        self._size = size
        self._headers = headers
        self._seconds = seconds
        self._large_parses = large_parses

    async def event(self, chunks: AsyncIterator[bytes], tag_paths: Sequence[str]) -> Event:
        """Read the chunks of the body, and return its event. Raises `Refused`."""
        body = await self._read(chunks)
        if len(body) <= _QUICKLY_PARSED:
            return read(body, self._headers, tag_paths)
        async with self._large_parses.one():
            try:
                return read(body, self._headers, tag_paths)
            finally:
                del body

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
        """The refusal of a body that is larger than any push, or larger than its admitted size."""
        source = replace(source_of(self._headers), pushed=False)
        detail = "the body is larger than the relay accepts"
        return Refused(Outcome.REJECTED, detail, source, code=TOO_LARGE)

    def _incomplete(self, how: str) -> Refused:
        """The refusal of a body that was not read to its end. Such a body is never parked."""
        source = source_of(self._headers)
        return Refused(Outcome.INCOMPLETE, f"the body {how}", source)


def _size(headers: Mapping[str, str]) -> int:
    """The body's declared size in bytes. If none is declared, the maximum for its kind."""
    declared = headers.get("content-length", "")
    if declared.isdecimal():
        return int(declared)
    return PUSH_LIMIT if source_of(headers).pushed else EVENT_LIMIT
