"""Everything that Svix may answer, over real sockets, and what each answer means for the event."""

import asyncio
import contextlib
import gzip
import json
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relay.envelope import Event, Source, read
from relay.outcome import Answer, Call, Verdict
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


def event(text: bytes = b'{"id": "evt_1"}', *tags: str) -> Event:
    """An event of project acme."""
    return Event("evt_1", "user.created", "acme", text, tags, "0" * 64, Source())


@contextlib.asynccontextmanager
async def sending_to(
    url: str, call_seconds: float = 10, *, create_applications: bool = True
) -> AsyncIterator[SvixSender]:
    """A sender, which is closed at the end."""
    sender = SvixSender(
        TOKEN, url, create_applications=create_applications, call_seconds=call_seconds
    )
    try:
        yield sender
    finally:
        await sender.close()


async def answer_to(script: Script, *, find: bool = False, call_seconds: float = 10) -> Answer:
    """The sender's answer from a server that runs this script."""
    async with serving(script) as url, sending_to(url, call_seconds) as sender:
        return await (sender.find(event()) if find else sender.send(event(), KEY))


@contextlib.asynccontextmanager
async def recording(
    response: bytes = http(202, MESSAGE),
) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Start a server. Yields its URL and the requests that it gets."""
    requests: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await read_request(reader))
        writer.write(response)

    async with serving(script) as url:
        yield url, requests


async def test_a_message_is_one_post_with_the_event_in_the_body_and_the_key_in_a_header() -> None:
    """The SDK makes this request. The sender puts the event into it, and so relies on its form."""
    async with recording() as (url, requests), sending_to(url) as sender:
        answer = await sender.send(event(b'{"id": "evt_1"}', "sim_1", "acme"), KEY)
    assert answer == Answer(Call.SEND, Verdict.ACCEPTED, 202, message_id="msg_1")
    (request,) = requests
    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /api/v1/app/acme/msg?with_content=false HTTP/1.1"
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert headers["idempotency-key"] == KEY
    assert headers["authorization"] == f"Bearer {TOKEN}"
    assert headers["content-type"] == "application/json"
    assert headers["user-agent"].startswith("svix-libs/")
    assert json.loads(body) == {
        "eventId": "evt_1",
        "eventType": "user.created",
        "payload": {"id": "evt_1"},
        "tags": ["sim_1", "acme"],
        "application": {"name": "acme", "uid": "acme"},
    }


async def test_without_create_applications_no_application_is_sent() -> None:
    """Empty tags are not sent either, because an older Svix might refuse them."""
    async with (
        recording() as (url, requests),
        sending_to(url, create_applications=False) as sender,
    ):
        await sender.send(event(), KEY)
    body = json.loads(requests[0].partition(b"\r\n\r\n")[2])
    assert body.keys() == {"eventId", "eventType", "payload"}


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


async def test_every_valid_event_reaches_svix_byte_for_byte() -> None:
    """Spaces, escapes, digits and repeated members are unchanged.

    An event that contains the text that the sender replaces, `"payload":{}`, is unchanged too.
    """
    async with recording() as (url, requests), sending_to(url) as sender:
        loop = asyncio.get_running_loop()

        def send(text: bytes) -> bytes:
            sending = sender.send(read(text, {}, ["data.id"]), KEY)
            answer = asyncio.run_coroutine_threadsafe(sending, loop).result(10)
            assert answer.verdict is Verdict.ACCEPTED
            return requests.pop()

        @settings(max_examples=60, deadline=None)
        @given(st.dictionaries(st.text(max_size=5), values), st.booleans(), st.none() | st.just(1))
        @example({"payload": {}}, True, None)  # noqa: FBT003 - an argument of the property
        def holds(more: dict[str, Any], ascii_only: bool, indent: int | None) -> None:  # noqa: FBT001 - as above
            value = {**more, "id": "e", "type": "t", "project": "p"}
            shown = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
            text = shown.encode(errors="replace")
            assert b'"payload":' + text in send(text)

        await asyncio.to_thread(holds)
        odd = b' {"id":"e", "type":"t","project":"p","n":1.000000000000000000001,"payload":{}} '
        assert b'"payload":' + odd in await asyncio.to_thread(send, odd)


@pytest.mark.parametrize("status", [200, 201, 202])
async def test_a_2xx_with_the_message_is_accepted(status: int) -> None:
    """Of Svix's answer, only the message's id is kept."""
    answer = await answer_to(answering(http(status, MESSAGE)))
    assert answer == Answer(Call.SEND, Verdict.ACCEPTED, status, message_id="msg_1")


@pytest.mark.parametrize("find", [False, True])
@pytest.mark.parametrize("status", [200, 202, 204])
@pytest.mark.parametrize("body", [*ODD_BODIES, b'{"id": 7}', b'{"id": "msg 1"}', b'{"id": ""}'])
async def test_a_2xx_that_is_not_from_the_api_is_misconfigured(
    status: int,
    body: bytes,
    find: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """A login portal may answer everything with 200. That does not mean that Svix has the event."""
    response = http(status, b"" if status == 204 else body)
    answer = await answer_to(answering(response), find=find)
    assert (answer.verdict, answer.status) == (Verdict.MISCONFIGURED, status)
    assert answer.failed
    assert answer.message_id is None


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
async def test_a_body_that_is_not_from_the_api_never_rejects_an_event(
    status: int, verdict: Verdict, body: bytes
) -> None:
    """A proxy's error page says nothing about the event. Only the status counts."""
    answer = await answer_to(answering(http(status, body, "Location: http://127.0.0.1:1/")))
    assert (answer.verdict, answer.status) == (verdict, status)
    assert answer.code is None


@pytest.mark.parametrize(
    ("status", "body", "verdict", "code"),
    [
        (400, b'{"code":"bad_request","detail":"x"}', Verdict.REJECTED, "bad_request"),
        (404, NOT_FOUND, Verdict.UNAVAILABLE, "not_found"),
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
    """Only the API can say that it will never take this event, or that something is not found."""
    answer = await answer_to(answering(http(status, body)))
    assert (answer.verdict, answer.status, answer.code) == (verdict, status, code)


async def test_of_a_validation_error_only_the_fields_are_kept() -> None:
    """The error's message may quote the payload."""
    answer = await answer_to(answering(http(422, INVALID)))
    assert answer.locs == ("body.eventType",)
    assert "secret" not in repr(answer)


@pytest.mark.parametrize("code", ["my secret is 7", "a\nb", "x" * 65, "", 7, None])
async def test_an_invalid_code_is_not_repeated(code: Any) -> None:
    """It might hold a part of the payload."""
    body = json.dumps({"code": code, "detail": "x"}).encode()
    answer = await answer_to(answering(http(400, body)))
    assert answer == Answer(Call.SEND, Verdict.UNAVAILABLE, 400)


async def test_an_unknown_application_is_unavailable_or_rejects_the_event() -> None:
    """The answer is UNAVAILABLE if the relay creates applications: this one will soon exist.

    Otherwise the answer is REJECTED. Both answers show that Svix processes sends.
    """
    async with serving(answering(http(404, NOT_FOUND))) as url:
        async with sending_to(url) as sender:
            answer = await sender.send(event(), KEY)
            assert answer == Answer(Call.SEND, Verdict.UNAVAILABLE, 404, "not_found")
            assert answer.taken
        async with sending_to(url, create_applications=False) as sender:
            answer = await sender.send(event(), KEY)
            assert answer == Answer(Call.SEND, Verdict.REJECTED, 404, "unknown_application")
            assert answer.taken


async def test_a_refused_connection_is_unavailable() -> None:
    """No server listens on the port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with sending_to(url) as sender:
            answer = await sender.send(event(), KEY)
    assert answer == Answer(Call.SEND, Verdict.UNAVAILABLE, failure="ConnectError")
    assert answer.failed


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
    """The event may be in Svix or not, so it is sent again with the same key."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if after_request:
            await read_request(reader)
        if how == "reset":
            reset(writer)

    answer = await answer_to(script)
    assert (answer.verdict, answer.status) == (Verdict.UNAVAILABLE, None)
    assert answer.failure
    assert answer.failure.endswith("Error")


@pytest.mark.parametrize("status", [200, 202])
async def test_after_a_2xx_that_broke_off_svix_may_have_the_event(status: int) -> None:
    """The status says that Svix took the event, so the relay asks for its message."""
    cut = http(status, MESSAGE)[:-10]
    broken_off = Answer(Call.SEND, Verdict.BROKEN_OFF, status, failure="the answer broke off")
    assert await answer_to(answering(cut)) == broken_off
    assert broken_off.taken
    asked = await answer_to(answering(cut), find=True)
    assert (asked.verdict, asked.status) == (Verdict.UNAVAILABLE, status)


@pytest.mark.parametrize(
    ("status", "verdict"), [(422, Verdict.UNAVAILABLE), (429, Verdict.RATE_LIMITED)]
)
async def test_an_error_that_broke_off_is_judged_by_its_status(
    status: int, verdict: Verdict
) -> None:
    """An incomplete body must not reject an event."""
    answer = await answer_to(answering(http(status, INVALID)[:-10]))
    assert (answer.verdict, answer.status) == (verdict, status)


async def test_a_call_that_hangs_ends_at_its_time_limit_and_closes_its_connection() -> None:
    """A call that hangs must not keep its request or its connection."""
    left = asyncio.Event()

    async def script(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await reader.read()  # until the client leaves
        left.set()

    async with serving(script) as url, sending_to(url, 0.2) as sender:
        answer = await sender.send(event(), KEY)
        await left.wait()
    assert answer == Answer(Call.SEND, Verdict.UNAVAILABLE, failure="no answer in 0.2 s")


@pytest.mark.parametrize(("status", "verdict"), [(202, "broken_off"), (500, "unavailable")])
async def test_an_answer_that_trickles_in_ends_at_the_limit_and_is_judged_by_its_status(
    status: int, verdict: str
) -> None:
    """Bytes keep coming, so a timeout between two bytes would never end the call."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(f"HTTP/1.1 {status} Said\r\nContent-Length: 100000\r\n\r\n".encode())
        while not reader.at_eof():
            writer.write(b" ")
            await writer.drain()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.02):  # seconds between two bytes
                    await reader.read()

    answer = await answer_to(script, call_seconds=0.3)
    assert (answer.verdict, answer.status) == (Verdict(verdict), status)
    assert answer.failure == "no answer in 0.3 s"


async def test_a_failed_tls_handshake_is_unavailable() -> None:
    """The server does not speak TLS, but its URL begins with https."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(http(400))

    async with (
        serving(script) as url,
        sending_to(url.replace("http", "https")) as sender,
    ):
        answer = await sender.send(event(), KEY)
    assert answer == Answer(Call.SEND, Verdict.UNAVAILABLE, failure="ConnectError")


async def test_an_answer_that_is_not_http_is_unavailable() -> None:
    """Another kind of server may listen there."""
    answer = await answer_to(answering(b"220 mail.example ESMTP\r\n"))
    assert answer == Answer(Call.SEND, Verdict.UNAVAILABLE, failure="DecodeError")


async def test_an_endless_answer_is_not_read_to_its_end() -> None:
    """The whole answer would fill the memory."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 Said\r\n\r\n")
        while True:
            writer.write(b" " * 65536)
            await writer.drain()

    assert (await answer_to(script)).verdict is Verdict.MISCONFIGURED


async def test_an_idle_connection_that_was_closed_fails_no_call() -> None:
    """A load balancer closes idle connections. The next call opens another one."""
    served = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        served += 1
        await read_request(reader)
        kept_alive = http(202, MESSAGE).replace(b"Connection: close\r\n", b"")
        writer.write(kept_alive)
        await writer.drain()

    async with serving(script) as url, sending_to(url) as sender:
        for calls in range(1, 6):
            assert (await sender.send(event(), KEY)).verdict is Verdict.ACCEPTED
            assert served == calls


async def test_a_compressed_answer_is_read() -> None:
    """Load balancers may compress answers."""
    packed = http(404, gzip.compress(NOT_FOUND), "Content-Encoding: gzip")
    answer = await answer_to(answering(packed))
    assert (answer.verdict, answer.code) == (Verdict.UNAVAILABLE, "not_found")
    spoilt = http(404, b"not gzip", "Content-Encoding: gzip")
    assert (await answer_to(answering(spoilt))).verdict is Verdict.MISCONFIGURED


async def test_the_environments_proxy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK's own client uses it too, unless `no_proxy` names the server."""
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


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate for localhost, with its key."""
    path = tmp_path / "certificate.pem"
    command = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    more = "-addext subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE"
    subprocess.run(  # noqa: S603 - arguments from above
        ["openssl", *command.split(), *more.split(), "-keyout", path, "-out", path],  # noqa: S607 - the system's own
        check=True,
        capture_output=True,
    )
    return path


async def test_a_certificate_must_be_trusted(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SSL_CERT_FILE can name the certificate of a Svix in a private network."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    async with serving(answering(http(202, MESSAGE)), tls) as plain:
        url = plain.replace("http://127.0.0.1", "https://localhost")
        async with sending_to(url) as sender:
            answer = await sender.send(event(), KEY)
            assert answer == Answer(Call.SEND, Verdict.UNAVAILABLE, failure="ConnectError")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        async with sending_to(url) as sender:
            assert (await sender.send(event(), KEY)).verdict is Verdict.ACCEPTED


async def test_the_sender_needs_no_certificates_of_the_system(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A container may have no certificates. The sender brings certifi's."""
    monkeypatch.setenv("SSL_CERT_DIR", "/nonexistent")
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent")
    assert (await answer_to(answering(http(202, MESSAGE)))).verdict is Verdict.ACCEPTED


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
async def test_a_valid_retry_after_is_read(header: str, expected: float | None) -> None:
    """A missing, past, negative or unreadable value is ignored. The pacer caps long ones."""
    answer = await answer_to(answering(http(429, b"", header)))
    assert answer == Answer(Call.SEND, Verdict.RATE_LIMITED, 429, retry_after=expected)


async def test_retry_after_may_be_a_date() -> None:
    """HTTP allows a date instead of seconds."""
    date = format_datetime(datetime.now(UTC) + timedelta(minutes=5), usegmt=True)
    answer = await answer_to(answering(http(503, b"", f"Retry-After: {date}")))
    assert answer.verdict is Verdict.UNAVAILABLE
    assert answer.retry_after == pytest.approx(300, abs=30)


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, MESSAGE, Verdict.ACCEPTED),
        (404, NOT_FOUND, Verdict.MISSING),
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
    """A question that fails says nothing about the event."""
    answer = await answer_to(answering(http(status, body)), find=True)
    assert answer.verdict is verdict


async def test_a_message_is_asked_for_by_its_event_id() -> None:
    """The relay asks in the event's own application."""
    requests: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await read_request(reader))
        writer.write(http(200, MESSAGE))

    assert (await answer_to(script, find=True)).message_id == "msg_1"
    assert requests[0].startswith(b"GET /api/v1/app/acme/msg/evt_1?with_content=false HTTP/1.1")


async def test_a_thousand_calls_at_once_keep_their_answers_apart() -> None:
    """No call gets the answer of another call's connection."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await read_request(reader)
        writer.write(http(202, MESSAGE) if b'"even"' in request else http(500))

    async with serving(script) as url, sending_to(url) as sender:
        answers = await asyncio.gather(
            *(
                sender.send(event(b'{"n":"odd"}' if n % 2 else b'{"n":"even"}'), KEY)
                for n in range(1000)
            )
        )
    assert [answer.status for answer in answers] == [202, 500] * 500
