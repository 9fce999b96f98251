"""Input stays within its bounds: its own project's path in Svix, one log line, 2 MiB."""

import asyncio
import functools
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from tests.function import JSON, Function, Svix, event, function_on_sqlite, wrapped

MIB = 1024 * 1024
HOSTILE = [
    *("..", ".", "../globex", "..%2fglobex", "globex/msg", "globex?x=1", "globex#", "a/../globex"),
    *(
        "globex%00",
        "globex\x00",
        "globex\r\nX-Injected: 1",
        "globex\n",
        "\u2028",
        "\uff47lobex",
        "",
    ),
    *("globex;a", "@globex", "globex\\msg", "//globex", "http://globex", "globex ", "x" * 257),
    *("{app_id}", "%s", "app_globex"),
]
CONTROLS = ["a\nb", "a\r\n{}", 'a"b', "a\x1b[2J", "a\x00b", "a\u2028b", "a\x7f"]


@pytest.fixture(scope="module")
def relay(svix: Svix) -> Iterator[Function]:
    """The function."""
    with function_on_sqlite(svix) as started:
        yield started


@pytest.fixture
async def client(relay: Function) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the function."""
    async with httpx.AsyncClient(base_url=relay.url, timeout=60) as opened:
        yield opened


async def post(client: httpx.AsyncClient, body: bytes, **headers: str) -> httpx.Response:
    """Post a body."""
    return await client.post("/notifications", content=body, headers={**JSON, **headers})


@pytest.mark.parametrize("field", ["project", "id", "type"])
async def test_no_name_leads_to_another_project(
    client: httpx.AsyncClient, svix: Svix, field: str
) -> None:
    """A hostile name is refused without a call. A good event goes only to its own project."""
    svix.control.reset()
    for number, name in enumerate(HOSTILE):
        if field != "project" and name == "app_globex":
            continue  # an id or a type may begin like this
        hostile = {**event(f"evt_{field}_{number}"), field: name}
        body = json.dumps(hostile).encode()
        assert (await post(client, body)).status_code == 400, name
        assert (await post(client, wrapped(body, "1"))).json()["outcome"] == "malformed", name
    assert svix.control.calls() == []
    good = event(f"evt_{field}_good", project="acme.-_9")
    assert (await post(client, json.dumps(good).encode())).status_code == 200
    paths = {urlsplit(call["path"]).path for call in svix.control.calls()}
    assert paths == {"/api/v1/app/acme.-_9/msg"}


async def test_nothing_around_an_event_leads_to_another_project(
    client: httpx.AsyncClient, svix: Svix
) -> None:
    """Attributes, query and headers that name another project change nothing."""
    svix.control.reset()
    body = json.dumps(event("evt_around")).encode()
    push = json.loads(wrapped(body, "1", project="globex"))
    push["message"]["attributes"] = {"project": "globex", "id": "evt_other"}
    answer = await client.post(
        "/notifications?project=globex&app_id=globex",
        content=json.dumps(push).encode(),
        headers={**JSON, "svix-app": "globex", "x-forwarded-path": "/globex"},
    )
    assert answer.json()["outcome"] == "delivered"
    assert {message["app"] for message in svix.control.messages()} == {"acme"}


@pytest.mark.parametrize("text", CONTROLS)
async def test_no_input_can_add_a_log_line(
    client: httpx.AsyncClient, relay: Function, text: str
) -> None:
    """Control characters in names and metadata are not logged: each request has one JSON line."""
    before = len(relay.server.output().splitlines())
    bodies: list[bytes] = [
        json.dumps({**event("evt_log"), "id": text}).encode(),
        wrapped(json.dumps({**event("evt_log"), "type": text}).encode(), text),
        wrapped(b"{", "1", subscription=text, deliveryAttempt=text),
    ]
    for body in bodies:
        answer = await post(client, body)
        assert "x-injected" not in answer.headers
        assert text not in answer.text
    lines = relay.server.output().splitlines()[before:]
    assert len(lines) == len(bodies)
    for line in lines:
        assert text not in json.dumps(json.loads(line), ensure_ascii=False)
        assert text not in line


async def test_no_header_injection_reaches_svix(client: httpx.AsyncClient, svix: Svix) -> None:
    """No part of the event becomes a header: the idempotency key is a hash, the token our own."""
    svix.control.reset()
    sent: dict[str, Any] = event("evt_header", data={"k": "v\r\nAuthorization: Bearer stolen"})
    assert (await post(client, json.dumps(sent).encode())).status_code == 200
    [message] = svix.control.messages()
    assert message["payload"] == sent
    assert [call["status"] for call in svix.control.calls()] == [202]


@functools.cache
def packed(size: int, wbits: int) -> bytes:
    """`size` zero bytes, compressed with gzip (`wbits` 31) or zlib (15)."""
    packer = zlib.compressobj(9, wbits=wbits)
    return b"".join(packer.compress(bytes(MIB)) for _ in range(size // MIB)) + packer.flush()


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "GZIP", "identity, gzip"])
async def test_a_decompression_bomb_is_refused_without_being_expanded(
    client: httpx.AsyncClient, relay: Function, encoding: str
) -> None:
    """200 MiB in less than 1 MiB are answered 415, and the worker's memory hardly grows."""
    [worker] = psutil.Process(relay.server.pid).children()
    bomb = packed(200 * MIB, wbits=31 if "zip" in encoding.lower() else 15)
    assert len(bomb) < MIB
    before = worker.memory_info().rss
    answer = await post(client, bomb, **{"content-encoding": encoding})
    assert (answer.status_code, answer.json()["outcome"]) == (415, "malformed")
    assert worker.memory_info().rss - before < 20 * MIB


async def test_a_push_with_compressed_data_is_parked(client: httpx.AsyncClient, svix: Svix) -> None:
    """Compressed bytes in `message.data` are not an event, and are not expanded."""
    svix.control.reset()
    data = gzip.compress(json.dumps(event("evt_gzip")).encode())
    answer = await post(client, wrapped(data, "1"))
    assert (answer.status_code, answer.json()["outcome"]) == (200, "malformed")
    assert svix.control.calls() == []


async def test_many_oversized_bodies_at_once_are_refused_as_they_come(relay: Function) -> None:
    """Thirty endless uploads are answered 413. The function holds at most 2 MiB of each."""
    [worker] = psutil.Process(relay.server.pid).children()
    before = worker.memory_info().rss
    port = int(relay.url.rpartition(":")[2])

    async def upload() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = b"POST /notifications HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        writer.write(head)
        chunk = b"%x\r\n" % MIB + b" " * MIB + b"\r\n"
        writer.write(chunk * 3)  # and no end
        status = (await reader.readline()).split()[1]
        writer.close()
        return status

    async with asyncio.timeout(60):
        assert set(await asyncio.gather(*(upload() for _ in range(30)))) == {b"413"}
    assert worker.memory_info().rss - before < 200 * MIB
