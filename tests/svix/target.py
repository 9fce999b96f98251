"""The Svix on which the conformance suite runs, and the calls of its tests."""

import asyncio
import hashlib
import json as json_text
import os
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from pyreqwest.client import Client, ClientBuilder

from local.endpoints import Endpoints
from relay.envelope import Event, Source
from relay.operate.svix import SvixView, Turn
from relay.outcome import Answer, Verdict
from relay.sender import SvixSender

PREFIX = f"webhook-relay-conformance-{uuid.uuid4().hex[:8]}"
"""The prefix of the names of everything that one run creates. The run changes nothing else."""

_AT_ONCE = 8  # calls; a refused one is sent again later
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0  # seconds after a 429 that names no time
_LOOK_AGAIN = 0.1  # seconds
_CALL_LIMIT = timedelta(seconds=30)
_TOO_MANY = 429

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Target:
    """A Svix under test."""

    url: str
    token: str
    second_token: str | None
    """Another token of the same environment."""
    is_hosted: bool
    """Which behaviour is expected where the hosted Svix and the open-source one differ."""

    @classmethod
    def from_environment(cls) -> Self:
        """The real Svix. Raises KeyError if its URL or its token is missing."""
        url = os.environ["SVIX_SERVER_URL"].rstrip("/")
        host = urlsplit(url).hostname or ""
        second = os.environ.get("SVIX_SECOND_TOKEN")
        return cls(url, os.environ["SVIX_TOKEN"], second, host.endswith(".svix.com"))

    reaches_us: bool = False
    """Whether it can send to an endpoint on this machine."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer of the API."""

    status: int
    body: bytes
    retry_after: float | None
    """Seconds."""

    def json(self) -> Any:
        """The parsed body."""
        return json_text.loads(self.body)


@dataclass(slots=True)
class Environment:
    """A test's part of a Svix: applications of its own, our sender and view, and plain HTTP.

    A call that is answered 429 waits, and is made again.
    """

    target: Target
    sender: SvixSender
    view: SvixView
    http: Client
    applications: set[str]
    """Everything that this test and others created, to be removed at the end."""
    event_types: set[str]
    _at_once: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))

    @classmethod
    def open(cls, target: Target, applications: set[str], event_types: set[str]) -> Self:
        """Open one. Call it in the running loop, and close it at the end."""
        builder = ClientBuilder().base_url(f"{target.url}/api/v1/").timeout(_CALL_LIMIT)
        return cls(
            target,
            SvixSender(target.token, target.url, create_applications=True),
            SvixView(target.token, target.url, _at_once, patience=60),
            builder.build(),
            applications,
            event_types,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self.sender.close()
        await self.view.__aexit__()
        await self.http.close()

    def new_application(self) -> str:
        """A new uid. Its application is created with its first message."""
        uid = f"{PREFIX}-{uuid.uuid4().hex[:8]}"
        self.applications.add(uid)
        return uid

    async def create_application(self) -> str:
        """Create an application, and return its uid."""
        uid = self.new_application()
        answer = await self.call("POST", "app", json={"name": uid, "uid": uid})
        assert answer.status == 201, answer.body
        return uid

    async def send(
        self, event: Event, key: str | None = None, sender: SvixSender | None = None
    ) -> Answer:
        """Send an event through the relay's sender, with this key or a new one."""
        used = key or uuid.uuid4().hex
        return await self._patiently(
            lambda: (sender or self.sender).send(event, used),
            lambda answer: answer.retry_after,
            lambda answer: answer.verdict is Verdict.RATE_LIMITED,
        )

    async def call(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        body: bytes | None = None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Make a plain HTTP call, under `/api/v1/`."""
        content = json_text.dumps(json).encode() if json is not None else body

        async def once() -> Reply:
            request = self.http.request(method, path).bearer_auth(self.target.token)
            request = request.headers(dict(headers or {})).query(dict(query or {}))
            if content is not None:
                request = request.body_bytes(content).header("content-type", "application/json")
            answer = await request.build().send()
            retry_after = _seconds(answer.get_header("retry-after"))
            return Reply(answer.status, (await answer.bytes()).to_bytes(), retry_after)

        return await self._patiently(
            once, lambda reply: reply.retry_after, lambda reply: reply.status == _TOO_MANY
        )

    async def _patiently(
        self,
        call: Callable[[], Awaitable[_Result]],
        retry_after: Callable[[_Result], float | None],
        is_refused: Callable[[_Result], bool],
    ) -> _Result:
        pause = _FIRST_PAUSE
        async with self._at_once:
            while is_refused(answer := await call()):
                await asyncio.sleep(retry_after(answer) or pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        return answer


def event(project: str, event_id: str | None = None, **more: Any) -> Event:
    """An event as the relay reads it. `more` may hold its `type`, `text` and `tags`."""
    name = event_id or f"evt_{uuid.uuid4().hex}"
    kind = more.get("type", "user.created")
    value = {"id": name, "type": kind, "project": project, "data": {}}
    text = more.get("text", json_text.dumps(value)).encode()
    digest = hashlib.sha256(text).hexdigest()
    return Event(name, kind, project, text, more.get("tags", ()), digest, Source())


async def reaches_us(target: Target) -> bool:
    """Whether it can send to this machine. It may be elsewhere, or forbid private addresses."""
    if urlsplit(target.url).hostname not in {"127.0.0.1", "localhost", "::1"}:
        return False
    environment = Environment.open(target, set(), set())
    async with Endpoints() as endpoints:
        app = await environment.create_application()
        await environment.call("POST", f"app/{app}/endpoint", json={"url": endpoints.url})
        message_id = (await environment.send(event(app))).message_id or ""
        attempts = await until(lambda: environment.view.attempts(app, message_id), bool)
        await environment.call("DELETE", f"app/{app}")
    await environment.close()
    return attempts[0].http is not None


async def until(
    asked: Callable[[], Awaitable[_Result]],
    enough: Callable[[_Result], bool],
    seconds: float = 20.0,
) -> _Result:
    """Repeat a call until `enough` accepts the result.

    Some effects, such as attempts, come after Svix's answer.
    """
    async with asyncio.timeout(seconds):
        while not enough(answer := await asked()):  # noqa: ASYNC110 - nothing signals it
            await asyncio.sleep(_LOOK_AGAIN)
    return answer


def _seconds(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


class _AtOnce:
    """A turn for the view's calls that never waits."""

    async def __aenter__(self) -> Callable[[Answer], None]:
        return lambda _answer: None

    async def __aexit__(self, *_: object) -> None:
        pass


def _at_once() -> Turn:
    return _AtOnce()
