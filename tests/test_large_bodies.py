"""Large bodies and slow senders beside small events: smaller than `make bench ARGS=memory`."""

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from bench.functions import Function as Measured
from tests.function import JSON, Function, Svix, event, function_on_sqlite, wrapped

LARGE, SMALL, SLOW = 60, 20, 200
MIB = 2**20
MEMORY_MB = 450
"""A container of 512 MiB should keep some of it free."""


@pytest.fixture(scope="module")
def relay(svix: Svix) -> Iterator[Function]:
    """The function with the least memory for bodies: 32 MiB, room for 22 of the large bodies."""
    with function_on_sqlite(svix, BODIES_MIB="32") as started:
        yield started


async def test_many_large_bodies_fit_and_small_events_go_on(relay: Function, svix: Svix) -> None:
    """84 MB at once, while Svix refuses: each is delivered once, and nothing is killed."""
    svix.control.inject("status", times=3, status=429, headers={"Retry-After": "1"})
    measured = Measured(relay.url, relay.server)
    workers = [process.pid for process in measured.processes()]
    peak = 0.0

    async def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, measured.megabytes())
            await asyncio.sleep(0.05)

    names = [f"evt_large_{number}" for number in range(LARGE)]
    names += [f"evt_small_{number}" for number in range(SMALL)]
    sizes = [MIB - 1000] * LARGE + [0] * SMALL
    bodies = [
        wrapped(json.dumps(event(name, data={"more": "x" * size})).encode(), name)
        for name, size in zip(names, sizes, strict=True)
    ]
    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None)) as client:
        posts = [client.post(relay.notifications, content=body, headers=JSON) for body in bodies]
        watching = asyncio.create_task(watch())
        answers = await asyncio.gather(*posts)
        watching.cancel()
    assert Counter(answer.json()["outcome"] for answer in answers) == {"delivered": len(names)}
    assert Counter(m["event_id"] for m in svix.control.messages("acme")) == Counter(names)
    assert [process.pid for process in measured.processes()] == workers
    assert peak < MEMORY_MB


async def test_slow_senders_hold_up_nobody(relay: Function) -> None:
    """While 200 connections have sent a part of their body, other events are delivered."""
    at = urlsplit(relay.url)
    opened = [await asyncio.open_connection(at.hostname, at.port) for _ in range(SLOW)]
    for number, (_, writer) in enumerate(opened):
        length = 2000 if number % 2 else MIB
        head = f"POST /notifications HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
        writer.write(head.encode() + b" ")
        await writer.drain()
    data = base64.b64encode(json.dumps(event("evt_healthy")).encode()).decode()
    async with httpx.AsyncClient(timeout=120) as client:
        answer = await client.post(relay.notifications, json={"message": {"data": data}})
    assert answer.json()["outcome"] == "delivered"
    assert not any(reader.at_eof() for reader, _ in opened), "a slow sender was answered"
    for _, writer in opened:
        writer.close()
