"""The load generator: posts events with a fixed number in flight, or at a fixed rate."""

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from pyreqwest.client import Client, ClientBuilder
from pyreqwest.response import Response

from bench.functions import push


@dataclass(slots=True)
class Load:
    """The figures of one load. Times are in seconds."""

    seconds: float = 0.0
    generator_seconds: float = 0.0
    """Processor time of the load generator itself."""
    latencies: list[float] = field(default_factory=list)
    finished: list[float] = field(default_factory=list)
    """When each request was answered, counted from the start."""
    statuses: Counter[int] = field(default_factory=Counter)
    most_in_flight: int = 0

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.finished) / self.seconds

    def latency(self, share: float) -> float:
        """The time within which this share of the requests was answered."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@contextlib.asynccontextmanager
async def client(*, keep_alive: bool = True) -> AsyncIterator[Client]:
    """A client with any number of connections. Without `keep_alive`, each request has its own."""
    builder = (
        ClientBuilder()
        .timeout(_LONGEST)
        .pool_idle_timeout(timedelta(seconds=1))  # shorter than any server's
        .tcp_user_timeout(None)  # some benches measure bodies that stay unread for long
        .no_proxy()
    )
    if not keep_alive:
        builder = builder.pool_max_idle_per_host(0)
    async with builder.build() as opened:
        yield opened


def events(run: str, count: int) -> list[bytes]:
    """The bodies of `count` pushes. They are made beforehand, so that posting is cheap."""
    return [json.dumps(push(number, run)).encode() for number in range(count)]


async def closed(client: Client, url: str, bodies: Sequence[bytes], in_flight: int) -> Load:
    """Post all bodies, `in_flight` at a time."""
    load = Load()
    left = iter(bodies)
    with _timed(load) as started:

        async def poster() -> None:
            for body in left:
                await _post(client, url, body, load, started)

        async with asyncio.TaskGroup() as posters:
            for _ in range(in_flight):
                posters.create_task(poster())
    return load


async def steady(client: Client, url: str, bodies: Sequence[bytes], rate: float) -> Load:
    """Post all bodies, `rate` a second, however many are not answered yet."""
    load = Load()
    with _timed(load) as started:
        running = 0

        async def one(body: bytes) -> None:
            nonlocal running
            running += 1
            load.most_in_flight = max(load.most_in_flight, running)
            await _post(client, url, body, load, started)
            running -= 1

        async with asyncio.TaskGroup() as posts:
            for number, body in enumerate(bodies):
                await asyncio.sleep(max(0.0, started + number / rate - time.perf_counter()))
                posts.create_task(one(body))
    return load


@contextlib.contextmanager
def _timed(load: Load) -> Iterator[float]:
    started, used = time.perf_counter(), time.process_time()
    yield started
    load.seconds = time.perf_counter() - started
    load.generator_seconds = time.process_time() - used


async def _post(client: Client, url: str, body: bytes, load: Load, started: float) -> None:
    posted = time.perf_counter()
    answer = await post(client, url, body)
    now = time.perf_counter()
    load.latencies.append(now - posted)
    load.finished.append(now - started)
    load.statuses[answer.status] += 1


async def post(client: Client, url: str, body: bytes) -> Response:
    """Post a push as Pub/Sub sends it."""
    request = client.post(url).header("content-type", "application/json")
    return await request.header("user-agent", _PUBSUB).body_bytes(body).build().send()


_PUBSUB = "APIs-Google; (+https://developers.google.com/webmasters/APIs-Google.html)"
_LONGEST = timedelta(seconds=600)  # the longest ack deadline: the function answers before
