"""Every row of what Svix may answer, over real sockets, and what each means for the event."""

import asyncio
import contextlib
import gzip
import json
import socket
import struct
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from relay import sender as sender_module
from relay.envelope import Event, Source
from relay.outcome import Answer, Verdict
from relay.sender import SvixSender
from tests.wire import Script, answering, http, read_request, serving

TOKEN = "testsk_secret.eu"
KEY = "a" * 64
MESSAGE = (
    b'{"id":"msg_1","eventType":"user.created","payload":{},"timestamp":"2026-11-24T00:00:00Z"}'
)
NOT_FOUND = b'{"code":"not_found","detail":"Application not found"}'
CONFLICT = b'{"code":"conflict","detail":"exists"}'
INVALID = b'{"detail":[{"loc":["body","eventType"],"msg":"no: secret","type":"value_error"}]}'
ODD_BODIES = [b"", b"<html>secret</html>", b"secret", b"[1]", b"{}", b'"s"', b"null", b"\xff"]


def event(payload: dict[str, Any] | None = None) -> Event:
    """An event of project acme."""
    names = {"id": "evt_1", "type": "user.created", "project": "acme"}
    return Event("evt_1", "user.created", "acme", {**names, **(payload or {})}, "0" * 64, Source())


@contextlib.asynccontextmanager
async def sending_to(url: str) -> AsyncIterator[SvixSender]:
    """A sender, closed after."""
    sender = SvixSender(TOKEN, url, create_applications=True)
    try:
        yield sender
    finally:
        await sender.close()


async def answer_to(script: Script, *, find: bool = False) -> Answer:
    """What the sender makes of a server that does this."""
    async with serving(script) as url, sending_to(url) as sender:
        return await (sender.find(event()) if find else sender.send(event(), KEY))


async def test_a_message_is_one_post_with_the_event_inside_and_the_key_outside() -> None:
    """The SDK's request, as this adapter relies on it."""
    requests: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await read_request(reader))
        writer.write(http(202, MESSAGE))

    async with serving(script) as url, sending_to(url) as sender:
        big = {"n": 2**200, "s": "ü\u2028", "nested": {"previousData": [None, 0.1]}}
        answer = await sender.send(event(big), KEY)
    assert answer == Answer(Verdict.ACCEPTED, 202, message_id="msg_1")
    (request,) = requests
    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /api/v1/app/acme/msg?with_content=false HTTP/1.1"
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert headers["idempotency-key"] == KEY
    assert headers["authorization"] == f"Bearer {TOKEN}"
    assert json.loads(body) == {
        "eventId": "evt_1",
        "eventType": "user.created",
        "payload": event(big).payload,
        "application": {"name": "acme", "uid": "acme"},
    }


@pytest.mark.parametrize("status", [200, 201, 202, 204])
@pytest.mark.parametrize("body", [MESSAGE, *ODD_BODIES])
async def test_any_2xx_is_accepted_whatever_its_body(status: int, body: bytes) -> None:
    """Svix took the message, readable or not."""
    answer = await answer_to(answering(http(status, b"" if status == 204 else body)))
    assert answer.verdict is Verdict.ACCEPTED
    assert answer.status == status
    assert answer.message_id == ("msg_1" if body is MESSAGE and status != 204 else None)


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (300, Verdict.MISCONFIGURED),
        (301, Verdict.MISCONFIGURED),
        (302, Verdict.MISCONFIGURED),
        (307, Verdict.MISCONFIGURED),
        (308, Verdict.MISCONFIGURED),
        (400, Verdict.UNAVAILABLE),
        (401, Verdict.MISCONFIGURED),
        (402, Verdict.MISCONFIGURED),
        (403, Verdict.MISCONFIGURED),
        (404, Verdict.MISCONFIGURED),
        (405, Verdict.MISCONFIGURED),
        (408, Verdict.UNAVAILABLE),
        (409, Verdict.CONFLICT),
        (410, Verdict.UNAVAILABLE),
        (413, Verdict.REJECTED),
        (418, Verdict.UNAVAILABLE),
        (422, Verdict.UNAVAILABLE),
        (423, Verdict.UNAVAILABLE),
        (429, Verdict.RATE_LIMITED),
        (500, Verdict.UNAVAILABLE),
        (502, Verdict.UNAVAILABLE),
        (503, Verdict.UNAVAILABLE),
        (504, Verdict.UNAVAILABLE),
        (599, Verdict.UNAVAILABLE),
    ],
)
@pytest.mark.parametrize("body", ODD_BODIES)
async def test_a_body_that_is_not_the_apis_never_rejects_an_event(
    status: int, verdict: Verdict, body: bytes
) -> None:
    """A proxy's page decides nothing about an event; the status alone does where it can."""
    answer = await answer_to(answering(http(status, body, "Location: http://127.0.0.1:1/")))
    assert (answer.verdict, answer.status) == (verdict, status)
    assert answer.code is None


@pytest.mark.parametrize(
    ("status", "body", "verdict", "code"),
    [
        (400, b'{"code":"bad_request","detail":"x"}', Verdict.REJECTED, "bad_request"),
        (404, NOT_FOUND, Verdict.NOT_FOUND, "not_found"),
        (404, b'{"code":"no_route","detail":"x"}', Verdict.MISCONFIGURED, "no_route"),
        (409, CONFLICT, Verdict.CONFLICT, "conflict"),
        (413, b'{"code":"payload_too_large","detail":"x"}', Verdict.REJECTED, "payload_too_large"),
        (422, b'{"code":"validation","detail":"x"}', Verdict.REJECTED, "validation"),
        (422, INVALID, Verdict.REJECTED, None),
        (422, b'{"detail":"a string"}', Verdict.UNAVAILABLE, None),
        (429, b'{"code":"rate_limit","detail":"x"}', Verdict.RATE_LIMITED, "rate_limit"),
        (500, b'{"code":"server_error","detail":"x"}', Verdict.UNAVAILABLE, "server_error"),
    ],
)
async def test_the_apis_own_errors(
    status: int, body: bytes, verdict: Verdict, code: str | None
) -> None:
    """What only the API can say: this event will never be taken, or there is no such thing."""
    answer = await answer_to(answering(http(status, body)))
    assert (answer.verdict, answer.status, answer.code) == (verdict, status, code)


async def test_of_a_validation_error_only_the_fields_are_kept() -> None:
    """Its message may echo the payload."""
    answer = await answer_to(answering(http(422, INVALID)))
    assert answer.locs == ("body.eventType",)
    assert "secret" not in repr(answer)


@pytest.mark.parametrize("code", ["my secret is 7", "a\nb", "x" * 65, "", 7, None])
async def test_a_code_that_is_no_code_is_not_repeated(code: Any) -> None:
    """It could be anything."""
    body = json.dumps({"code": code, "detail": "x"}).encode()
    answer = await answer_to(answering(http(400, body)))
    assert answer == Answer(Verdict.UNAVAILABLE, 400)


async def test_a_refused_connection_is_unavailable() -> None:
    """Nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with sending_to(url) as sender:
            assert await sender.send(event(), KEY) == Answer(Verdict.UNAVAILABLE)


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with a TCP reset."""
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.close()


@pytest.mark.parametrize("after_request", [False, True])
@pytest.mark.parametrize("how", ["reset", "close"])
async def test_a_connection_lost_before_the_answer_is_unavailable(
    after_request: bool,  # noqa: FBT001 - a parameter of the test
    how: str,
) -> None:
    """The event may be in Svix or not: it is sent again under the same key."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if after_request:
            await read_request(reader)
        if how == "reset":
            reset(writer)

    assert await answer_to(script) == Answer(Verdict.UNAVAILABLE)


async def test_a_connection_lost_within_a_2xx_body_is_accepted() -> None:
    """The status was seen."""
    cut = http(202, MESSAGE)[:-10]
    assert await answer_to(answering(cut)) == Answer(Verdict.ACCEPTED, 202)


async def test_a_hang_ends_with_the_calls_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """No call outlives its limit."""
    monkeypatch.setattr(sender_module, "SVIX_CALL_SECONDS", 0.2)

    async def script(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await reader.read()  # until the client leaves

    assert await answer_to(script) == Answer(Verdict.UNAVAILABLE)


@pytest.mark.parametrize(("status", "verdict"), [(202, "accepted"), (500, "unavailable")])
async def test_a_dripping_answer_ends_with_the_limit_and_counts_by_its_status(
    monkeypatch: pytest.MonkeyPatch, status: int, verdict: str
) -> None:
    """A byte now and then would outlive any time-out between bytes."""
    monkeypatch.setattr(sender_module, "SVIX_CALL_SECONDS", 0.3)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(f"HTTP/1.1 {status} Said\r\nContent-Length: 100000\r\n\r\n".encode())
        while not reader.at_eof():
            writer.write(b" ")
            await writer.drain()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.02):  # the drip
                    await reader.read()

    answer = await answer_to(script)
    assert (answer.verdict, answer.status) == (Verdict(verdict), status)


async def test_a_failed_tls_handshake_is_unavailable() -> None:
    """A server that speaks no TLS on an https URL."""
    async with (
        serving(answering(http(202, MESSAGE))) as url,
        sending_to(url.replace("http", "https")) as sender,
    ):
        assert await sender.send(event(), KEY) == Answer(Verdict.UNAVAILABLE)


async def test_an_answer_that_is_not_http_is_unavailable() -> None:
    """Whatever listens there."""
    assert await answer_to(answering(b"220 mail.example ESMTP\r\n")) == Answer(Verdict.UNAVAILABLE)


async def test_a_compressed_answer_is_read() -> None:
    """Load balancers compress."""
    packed = http(404, gzip.compress(NOT_FOUND), "Content-Encoding: gzip")
    answer = await answer_to(answering(packed))
    assert (answer.verdict, answer.code) == (Verdict.NOT_FOUND, "not_found")
    spoilt = http(404, b"not gzip", "Content-Encoding: gzip")
    assert (await answer_to(answering(spoilt))).verdict is Verdict.MISCONFIGURED


async def test_the_environments_proxy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the SDK's own client does, unless `no_proxy` names the server."""
    requests: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await read_request(reader))
        writer.write(http(202, MESSAGE))

    async with serving(script) as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        async with sending_to("http://svix.invalid") as sender:
            assert (await sender.send(event(), KEY)).verdict is Verdict.ACCEPTED
        monkeypatch.setenv("no_proxy", "svix.invalid")
        async with sending_to("http://svix.invalid") as sender:
            assert (await sender.send(event(), KEY)).verdict is Verdict.UNAVAILABLE
    (request,) = requests
    assert request.startswith(b"POST http://svix.invalid/api/v1/app/acme/msg")


async def test_a_payload_the_sdk_cannot_serialise_is_rejected_without_a_call() -> None:
    """It would never pass, however often it is tried."""
    deep: dict[str, Any] = {}
    for _ in range(400):
        deep = {"a": deep}
    called = False

    async def script(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        nonlocal called
        called = True

    async with serving(script) as url, sending_to(url) as sender:
        answer = await sender.send(event(deep), KEY)
    assert answer == Answer(Verdict.REJECTED, code="unserializable")
    assert not called


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("Retry-After: 7", 7.0),
        ("retry-after: 0", 0.0),
        ("Retry-After: 1.5", 1.5),
        ("Retry-After: 86400", 86400.0),
        ("Retry-After: -5", None),
        ("Retry-After: soon", None),
        ("Retry-After: nan", None),
        ("Retry-After: 1e999", None),
        ("Retry-After: ", None),
        ("Retry-After: Tue, 24 Nov 2020 00:00:00 GMT", None),
        ("X-Other: 7", None),
    ],
)
async def test_retry_after_is_read_where_it_says_something(
    header: str, expected: float | None
) -> None:
    """Absent, past, negative and unreadable are all nothing; the pacer judges what is absurd."""
    answer = await answer_to(answering(http(429, b"", header)))
    assert answer == Answer(Verdict.RATE_LIMITED, 429, retry_after=expected)


async def test_retry_after_may_be_a_date() -> None:
    """The header's other form."""
    date = format_datetime(datetime.now(UTC) + timedelta(minutes=5), usegmt=True)
    answer = await answer_to(answering(http(503, b"", f"Retry-After: {date}")))
    assert answer.verdict is Verdict.UNAVAILABLE
    assert answer.retry_after == pytest.approx(300, abs=30)


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, MESSAGE, Verdict.ACCEPTED),
        (404, NOT_FOUND, Verdict.NOT_FOUND),
        (404, b"<html>", Verdict.MISCONFIGURED),
        (401, b"", Verdict.MISCONFIGURED),
        (429, b"", Verdict.RATE_LIMITED),
        (409, CONFLICT, Verdict.UNAVAILABLE),
        (422, INVALID, Verdict.UNAVAILABLE),
        (413, b"", Verdict.UNAVAILABLE),
        (500, b"", Verdict.UNAVAILABLE),
    ],
)
async def test_asking_for_a_message_can_never_reject_an_event(
    status: int, body: bytes, verdict: Verdict
) -> None:
    """A question that fails settles nothing."""
    answer = await answer_to(answering(http(status, body)), find=True)
    assert answer.verdict is verdict


async def test_a_message_is_asked_for_by_its_event_id() -> None:
    """Within its own application."""
    requests: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await read_request(reader))
        writer.write(http(200, MESSAGE))

    assert (await answer_to(script, find=True)).message_id == "msg_1"
    assert requests[0].startswith(b"GET /api/v1/app/acme/msg/evt_1?with_content=false HTTP/1.1")


async def test_many_calls_at_once_keep_their_answers_apart() -> None:
    """What was seen on one connection is never another call's."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await read_request(reader)
        writer.write(http(202, MESSAGE) if b'"even"' in request else http(500))

    async with serving(script) as url, sending_to(url) as sender:
        answers = await asyncio.gather(
            *(sender.send(event({"n": "odd" if n % 2 else "even"}), KEY) for n in range(60))
        )
    assert [answer.status for answer in answers] == [202, 500] * 30
