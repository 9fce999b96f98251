"""When a body is read: a small one at once, a large one when there is room for it."""

import asyncio
import base64
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Mapping

import pytest
from starlette.requests import ClientDisconnect

from relay.envelope import EVENT_LIMIT, PUSH_LIMIT, Event, Refused
from relay.intake import Intake, NotAdmitted
from relay.outcome import Outcome
from tests.virtual_time import in_virtual_time, now

MIB = 2**20
EVENT = {"id": "evt_1", "type": "user.created", "project": "acme"}
PUSHED = {"user-agent": "APIs-Google; (+https://developers.google.com/webmasters/APIs-Google.html)"}


def sized(size: int) -> dict[str, str]:
    """The headers of a body of this many bytes."""
    return {"content-length": str(size)}


async def arriving(*chunks: bytes) -> AsyncIterator[bytes]:
    """A body in these chunks."""
    for chunk in chunks:
        yield chunk


async def breaking_off(*chunks: bytes) -> AsyncIterator[bytes]:
    """A body whose sender disconnects at the end of these chunks."""
    for chunk in chunks:
        yield chunk
    raise ClientDisconnect


async def never_ending(*chunks: bytes) -> AsyncIterator[bytes]:
    """A body that never ends."""
    for chunk in chunks:
        yield chunk
    await asyncio.Event().wait()


def never() -> float:
    """A deadline that no test reaches."""
    return time.monotonic() + 60


class Requests:
    """Requests that hold their room until they are answered."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._answered: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.admitted: list[str] = []

    async def post(self, name: str, headers: Mapping[str, str], within: float = 60) -> None:
        """Post a request, and let it run until it waits."""
        self._answered[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._request(name, headers, within))
        await self.settled()

    async def _request(self, name: str, headers: Mapping[str, str], within: float) -> None:
        async with self._intake.admit(headers, time.monotonic() + within):
            self.admitted.append(name)
            await self._answered[name].wait()

    async def answer(self, name: str) -> None:
        """Answer a request, which frees its room."""
        self._answered[name].set()
        await self._tasks[name]
        await self.settled()

    async def cancel(self, name: str) -> None:
        """Cancel a request, wherever it waits."""
        self._tasks[name].cancel()
        with contextlib.suppress(asyncio.CancelledError, NotAdmitted):
            await self._tasks[name]
        await self.settled()

    async def end(self, name: str) -> None:
        """Wait for a request's end. Raises what it raised."""
        await self._tasks[name]

    @staticmethod
    async def settled() -> None:
        """Let every task run that can."""
        for _ in range(5):
            await asyncio.sleep(0)


@pytest.fixture
async def requests() -> AsyncIterator[Requests]:
    """Requests at an intake of 32 MiB."""
    requests = Requests(Intake(32 * MIB, time.monotonic))
    yield requests
    for name in requests._tasks:
        await requests.cancel(name)


async def test_small_bodies_are_read_however_full_the_intake_is(requests: Requests) -> None:
    """The pace of small events never depends on large ones."""
    for number in range(4):
        await requests.post(f"large {number}", sized(14 * MIB))
    for number in range(100):
        await requests.post(f"small {number}", sized(16 * 1024))
    assert requests.admitted == ["large 0", "large 1", *(f"small {n}" for n in range(100))]


async def test_an_answered_request_makes_room_for_the_next(requests: Requests) -> None:
    """The requests never hold more than the limit."""
    for number in range(4):
        await requests.post(f"{number}", sized(14 * MIB))
    assert requests.admitted == ["0", "1"]
    await requests.answer("1")
    assert requests.admitted == ["0", "1", "2"]
    await requests.answer("0")
    assert requests.admitted == ["0", "1", "2", "3"]


async def test_no_body_is_overtaken_by_a_smaller_one(requests: Requests) -> None:
    """Otherwise a body of 14 MB would wait for as long as smaller ones come."""
    await requests.post("0", sized(14 * MIB))
    await requests.post("1", sized(14 * MIB))
    await requests.post("2", sized(14 * MIB))
    await requests.post("3", sized(1 * MIB))
    assert requests.admitted == ["0", "1"]
    await requests.answer("0")
    assert requests.admitted == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("headers", "fits"), [({}, 32 // 2), (PUSHED, 32 // 14), ({"content-length": "x"}, 32 // 2)]
)
async def test_a_body_of_unknown_length_counts_as_the_longest(
    requests: Requests, headers: dict[str, str], fits: int
) -> None:
    """The longest is 2 MiB by hand and 14 MB from Pub/Sub."""
    for number in range(20):
        await requests.post(f"{number}", headers)
    assert len(requests.admitted) == fits


async def test_projects_take_turns_where_they_are_known(requests: Requests) -> None:
    """A flood of one project does not keep another's bodies out."""
    for number in range(6):
        await requests.post(f"flood {number}", sized(14 * MIB) | {"ce-project": "flood"})
    await requests.post("quiet", sized(14 * MIB) | {"ce-project": "quiet"})
    await requests.answer("flood 0")
    await requests.answer("flood 1")
    assert requests.admitted == ["flood 0", "flood 1", "flood 2", "quiet"]


async def test_a_body_that_is_not_admitted_in_time_is_not_read(requests: Requests) -> None:
    """The bodies behind it no longer wait for it if there is room for them."""
    await requests.post("0", sized(14 * MIB))
    await requests.post("1", sized(14 * MIB))
    await requests.post("2", sized(14 * MIB), within=0.05)
    await requests.post("3", sized(1 * MIB))
    with pytest.raises(NotAdmitted):
        await requests.end("2")
    await requests.settled()
    assert requests.admitted == ["0", "1", "3"]


async def test_two_requests_that_give_up_at_the_same_moment_leave_their_places() -> None:
    """When the first gives up there is room for the second, which has just given up too."""
    intake = Intake(PUSH_LIMIT + MIB, time.monotonic)
    first = time.monotonic() + 0.05

    async def waits(size: int, last_moment: float) -> None:
        with pytest.raises(NotAdmitted):
            async with intake.admit(sized(size), last_moment):
                pass

    async with intake.admit(sized(PUSH_LIMIT), never()):
        both = asyncio.gather(waits(2 * MIB, first), waits(MIB, first + 0.01))
        await asyncio.sleep(0)
        time.sleep(0.1)  # noqa: ASYNC251 - it blocks the loop until both moments have passed
        await both
    async with asyncio.timeout(5), intake.admit(sized(PUSH_LIMIT), never()):
        await asyncio.sleep(0)


async def test_a_request_that_is_shut_down_leaves_its_place(requests: Requests) -> None:
    """Its room is free again, whether it waited, was admitted, or was just being admitted."""
    await requests.post("0", sized(20 * MIB // 2))
    await requests.post("1", sized(14 * MIB))
    await requests.post("2", sized(14 * MIB))
    await requests.post("3", sized(14 * MIB))
    requests._answered["0"].set()
    await asyncio.sleep(0)  # 2 is admitted now, and has not gone on yet
    await requests.cancel("2")
    await requests.cancel("1")
    await requests.post("4", sized(14 * MIB))
    await requests.post("5", sized(4 * MIB))
    assert requests.admitted == ["0", "1", "3", "4", "5"]


async def event_of(
    chunks: AsyncIterator[bytes], headers: Mapping[str, str], arrival_seconds: float = 20
) -> Event:
    """The event that is read from a request."""
    intake = Intake(32 * MIB, time.monotonic, arrival_seconds)
    async with intake.admit(headers, never()) as admission:
        return await admission.event(chunks, ["data.id"])


def big(size: int) -> bytes:
    """An event of this many bytes."""
    return json.dumps(
        {**EVENT, "more": "x" * (size - len(json.dumps({**EVENT, "more": ""})))}
    ).encode()


@pytest.mark.parametrize("size", [100, 16 * 1024, 16 * 1024 + 1, 64 * 1024 + 1, EVENT_LIMIT])
async def test_a_body_is_read_whole_in_any_chunks(size: int) -> None:
    """This holds with and without a Content-Length."""
    body = big(size)
    for headers in (sized(size), {}):
        pieces = arriving(body[:50], b"", body[50:90], body[90:])
        assert (await event_of(pieces, headers)).text == body


@pytest.mark.parametrize(
    ("chunks", "headers"),
    [
        (arriving(), sized(PUSH_LIMIT + 1)),
        (arriving(), sized(PUSH_LIMIT + 1) | PUSHED),
        (arriving(b"x" * EVENT_LIMIT, b"x"), {}),
        (arriving(b"x" * PUSH_LIMIT, b"x"), PUSHED),
        (arriving(b"x" * EVENT_LIMIT, b"x"), sized(EVENT_LIMIT + 1)),
    ],
)
async def test_a_body_larger_than_any_push_is_refused_and_not_parked(
    chunks: AsyncIterator[bytes], headers: dict[str, str]
) -> None:
    """Pub/Sub sends no such body. If the Content-Length is too large, no byte is read."""
    with pytest.raises(Refused) as error:
        await event_of(chunks, headers)
    assert (error.value.outcome, error.value.code) == (Outcome.REJECTED, "too_large")
    assert not error.value.source.pushed


@pytest.mark.parametrize("size", [100, 100_000])
@pytest.mark.parametrize("headers", [{}, PUSHED, PUSHED | {"x-goog-pubsub-message-id": "77"}])
@pytest.mark.parametrize("arrived", [0, 1, 99])
async def test_a_body_that_is_not_whole_is_incomplete(
    size: int, headers: dict[str, str], arrived: int
) -> None:
    """A part of a body says nothing about the event, whoever sent it and wherever it broke off."""
    body = big(size)[:arrived]
    for chunks, words in ((breaking_off(body), "broke off"), (never_ending(body), "0.01 s")):
        with pytest.raises(Refused, match=words) as error:
            await event_of(chunks, sized(size) | headers, arrival_seconds=0.01)
        assert error.value.outcome is Outcome.INCOMPLETE
        assert error.value.source.message_id == headers.get("x-goog-pubsub-message-id")
        assert error.value.source.data == b""


async def test_wherever_a_push_breaks_off_it_is_incomplete() -> None:
    """It may break off after any byte, even after the last, if the Content-Length is larger."""
    data = base64.b64encode(json.dumps(EVENT).encode()).decode()
    body = json.dumps({"message": {"data": data, "messageId": "77"}}).encode()
    for arrived in range(len(body) + 1):
        with pytest.raises(Refused, match="broke off") as error:
            await event_of(breaking_off(body[:arrived]), sized(len(body) + 1) | PUSHED)
        assert error.value.outcome is Outcome.INCOMPLETE
    assert (await event_of(arriving(body), sized(len(body)) | PUSHED)).id == EVENT["id"]


@in_virtual_time
async def test_large_bodies_take_half_of_the_event_loops_time() -> None:
    """After each parse, the loop is left to small events for as long as the parse took."""
    clock = itertools.chain.from_iterable((seconds, seconds + 0.5) for seconds in itertools.count())
    intake = Intake(32 * MIB, clock.__next__)  # each parse takes half a second
    done: list[float] = []

    async def large() -> None:
        body = big(100_000)
        async with intake.admit(sized(len(body)), never()) as admission:
            await admission.event(arriving(body), [])
            done.append(now())

    await asyncio.gather(*(large() for _ in range(4)))
    assert done == [0.5, 1.0, 1.5, 2.0]
