"""A Svix that runs here: a real HTTP server with the real one's rules, a rate limit, and faults.

For the tests, `make run` and the bench; the relay knows it only as a URL. It takes messages and
creates applications, and delivers nothing to anyone. Where the documentation is silent it does as
Svix's open-source server does (https://github.com/svix/svix-webhooks). `/control` is its own: it
shows what is held, and switches limits and faults.
"""

import argparse
import asyncio
import signal
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http import HTTPStatus
from typing import Any, Self

from aiohttp import web

from local import control, wire
from local.conduct import Call, Conduct, Fault, StoredMessage

_KEY_LIFETIME = timedelta(hours=12)
_EVENT_ID_LIFETIME = timedelta(hours=24)
_KEY_WAIT = 5.0  # seconds that a second call waits for the first of the same key
_CALLS_KEPT = 300_000
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Bucket:
    """Svix's side of the rate limit."""

    def __init__(self, burst: float) -> None:
        self.tokens = burst
        self._filled_at = time.monotonic()

    def take(self, rate: float, burst: float) -> bool:
        now = time.monotonic()
        self.tokens = min(burst, self.tokens + (now - self._filled_at) * rate)
        self._filled_at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class Simulator:
    """The server; an async context manager. `url` is where the SDK should look for Svix."""

    def __init__(self, token: str = "testsk_local", port: int = 0, **conduct: Any) -> None:
        self.token = token
        self.conduct = Conduct(**conduct)
        self.messages: list[StoredMessage] = []
        self.calls: deque[Call] = deque(maxlen=_CALLS_KEPT)
        self.applications: dict[str, datetime] = {}
        self.endpoints: dict[str, list[dict[str, Any]]] = {}
        self._faults: list[Fault] = []
        self._faults_cleared = asyncio.Event()
        self._port = port
        self._bucket = _Bucket(self.conduct.burst)
        self._by_id: dict[tuple[str, str], StoredMessage] = {}
        self._keys: dict[tuple[str, str], tuple[datetime, asyncio.Future[bytes | None]]] = {}
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None

    # -- running

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=32 * 1024 * 1024)
        api = "/api/v1/app"
        app.add_routes(
            [
                web.post(f"{api}/{{app}}/msg", self._guarded(self._create_message)),
                web.get(f"{api}/{{app}}/msg", self._guarded(self._list_messages)),
                web.get(f"{api}/{{app}}/msg/{{id}}", self._guarded(self._get_message)),
                web.get(f"{api}/{{app}}/msg/{{id}}/endpoint", self._guarded(self._destinations)),
                web.get(f"{api}/{{app}}/attempt/msg/{{id}}", self._guarded(self._attempts)),
                web.get(f"{api}/{{app}}/attempt/endpoint/{{id}}", self._guarded(self._attempts_at)),
                web.get(f"{api}/{{app}}/endpoint", self._guarded(self._list_endpoints)),
                web.get(api, self._guarded(self._list_applications)),
                web.post(api, self._guarded(self._create_application)),
                web.get(f"{api}/{{app}}", self._guarded(self._get_application)),
                *control.routes(self),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await self.start_listening()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.clear_faults()
        if self._runner is not None:
            await self._runner.cleanup()

    async def start_listening(self) -> None:
        """Listen, on the same port as before."""
        assert self._runner is not None  # noqa: S101 - it is entered first
        self._site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await self._site.start()
        self._port = self._runner.addresses[0][1]

    async def stop_listening(self) -> None:
        """Refuse connections, and reset those there are."""
        if self._site is None or self._runner is None or self._runner.server is None:
            return
        await self._site.stop()
        self._site = None
        for connection in self._runner.server.connections:
            if connection.transport is not None:
                connection.transport.abort()

    @property
    def url(self) -> str:
        """Where the SDK finds it."""
        return f"http://127.0.0.1:{self._port}"

    def inject(self, fault: Fault) -> None:
        """Let something go wrong from now on."""
        self._faults_cleared.clear()
        self._faults.append(fault)

    def clear_faults(self) -> None:
        """Let nothing go wrong any more; calls that hang are let go."""
        self._faults.clear()
        self._faults_cleared.set()

    def reset(self) -> None:
        """Forget all messages, applications, calls and faults."""
        self.clear_faults()
        self.messages.clear()
        self.calls.clear()
        self.applications.clear()
        self.endpoints.clear()
        self._by_id.clear()
        self._keys.clear()

    # -- what every call goes through

    def _guarded(self, handler: _Handler) -> _Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            status = 0
            try:
                response = await self._answer(request, handler)
                status = response.status
            except ConnectionResetError:
                return wire.reset(request)  # the client has left before all of it was here
            finally:
                call = Call(time.monotonic(), request.method, request.path_qs, status)
                self.calls.append(call)
            return response

        return guarded

    async def _answer(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        if request.headers.get("authorization") != f"Bearer {self.token}":
            return wire.error(401, "authentication_failed", "Invalid token")
        conduct = self.conduct
        if conduct.rate is not None and not self._bucket.take(conduct.rate, conduct.burst):
            await asyncio.sleep(conduct.latency)
            return self._too_many()
        fault = next((f for f in self._faults if f.method in {request.method, "*"}), None)
        if fault is None:
            return await handler(request)
        if fault.times is not None:
            fault.times -= 1
            if not fault.times:
                self._faults.remove(fault)
        return await self._fail(fault, request, handler)

    def _too_many(self) -> web.Response:
        headers = {}
        match self.conduct.retry_after:
            case "seconds":
                headers["Retry-After"] = "1"
            case "date":
                soon = datetime.now(UTC) + timedelta(seconds=2)
                headers["Retry-After"] = format_datetime(soon, usegmt=True)
            case str() as text:
                headers["Retry-After"] = text
        return wire.error(429, "rate_limit", "Too many requests", headers)

    async def _fail(  # noqa: PLR0911 - one for each kind
        self, fault: Fault, request: web.Request, handler: _Handler
    ) -> web.StreamResponse:
        match fault.kind:
            case "hang":
                await self._faults_cleared.wait()
                return wire.reset(request)
            case "drop":
                return wire.reset(request)
            case "drip":
                await self._store(request)
                return await self._drip(request)
            case "lose_answer":
                await handler(request)
                return wire.reset(request)
            case "store_then_status":
                await self._store(request)
            case "race":
                return wire.conflict()
        if fault.body == "json":
            return wire.error(fault.status, "server_error", "Something went wrong", fault.headers)
        return web.Response(
            status=fault.status, body=wire.BODIES[fault.body], headers=fault.headers
        )

    async def _drip(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=202, headers={"Content-Length": "1000000"})
        await response.prepare(request)
        while not self._faults_cleared.is_set():
            await response.write(b" ")
            await asyncio.sleep(0.05)
        return wire.reset(request)

    # -- messages

    async def _create_message(self, request: web.Request) -> web.StreamResponse:
        key = request.headers.get("idempotency-key")
        if key is None:
            await asyncio.sleep(self.conduct.latency)
            return await self._store(request)
        slot = (request.path_qs, key)
        kept = self._keys.get(slot)
        if kept is not None and self._now() - kept[0] < _KEY_LIFETIME:
            try:
                first = await asyncio.wait_for(asyncio.shield(kept[1]), _KEY_WAIT)
            except TimeoutError:
                first = None
            if first is not None:
                return web.Response(status=202, body=first, content_type="application/json")
        running = asyncio.get_running_loop().create_future()
        self._keys[slot] = (self._now(), running)
        answer = None
        try:
            await asyncio.sleep(self.conduct.latency)
            response = await self._store(request)
            if response.status == HTTPStatus.ACCEPTED and isinstance(response.body, bytes):
                answer = response.body
        finally:
            running.set_result(answer)  # None: only what succeeded is kept
            if answer is None:
                self._keys.pop(slot, None)
        return response

    async def _store(self, request: web.Request) -> web.Response:
        app = request.match_info["app"]
        body, fault = await wire.message_in(request)
        if fault is not None:
            return fault
        application = body.get("application")
        if application is not None and application.get("uid") != app:
            return wire.invalid("application", "uid must match the path")
        if app not in self.applications:
            if application is None:
                return wire.error(404, "not_found", "Application not found")
            self.applications[app] = self._now()
        event_id = body.get("eventId")
        if event_id is not None:
            known = self._by_id.get((app, event_id))
            if known is not None and self._now() - known.received_at < _EVENT_ID_LIFETIME:
                return wire.conflict()
        message = StoredMessage(
            app,
            f"msg_{len(self.messages):026d}",
            event_id,
            body["eventType"],
            body["payload"],
            self._now(),
        )
        self.messages.append(message)
        self._by_id[app, message.id] = message
        if event_id is not None:
            self._by_id[app, event_id] = message
        return web.json_response(wire.message_out(message, request), status=202)

    async def _get_message(self, request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(self.conduct.latency)
        message = self._by_id.get((request.match_info["app"], request.match_info["id"]))
        if message is None:
            return wire.error(404, "not_found", "Entity not found")
        return web.json_response(wire.message_out(message, request))

    async def _list_messages(self, request: web.Request) -> web.StreamResponse:
        """Newest first, as Svix does."""
        app = request.match_info["app"]
        if app not in self.applications:
            return wire.error(404, "not_found", "Application not found")
        held = self._held(app, request)
        return wire.page(request, [(m.id, wire.message_out(m, request)) for m in held])

    def _held(self, app: str, request: web.Request) -> list[StoredMessage]:
        before, after = (wire.time(request.query.get(name)) for name in ("before", "after"))
        return [
            message
            for message in reversed(self.messages)
            if message.app == app
            and (before is None or message.received_at < before)
            and (after is None or message.received_at > after)
        ]

    # -- applications, endpoints, attempts

    async def _create_application(self, request: web.Request) -> web.StreamResponse:
        uid = (await request.json()).get("uid")
        if uid in self.applications and request.query.get("get_if_exists") != "true":
            return wire.conflict()
        self.applications.setdefault(uid, self._now())
        return web.json_response(self._application_out(uid), status=201)

    async def _get_application(self, request: web.Request) -> web.StreamResponse:
        app = request.match_info["app"]
        if app not in self.applications:
            return wire.error(404, "not_found", "Application not found")
        return web.json_response(self._application_out(app))

    async def _list_applications(self, request: web.Request) -> web.StreamResponse:
        return wire.page(request, [(uid, self._application_out(uid)) for uid in self.applications])

    def _application_out(self, uid: str) -> dict[str, Any]:
        created = self.applications[uid].isoformat()
        times = {"createdAt": created, "updatedAt": created}
        return {"id": f"app_{uid}", "uid": uid, "name": uid, "metadata": {}, **times}

    async def _list_endpoints(self, request: web.Request) -> web.StreamResponse:
        app = request.match_info["app"]
        if app not in self.applications:
            return wire.error(404, "not_found", "Application not found")
        created = self.applications[app].isoformat()
        endpoints = [wire.endpoint_out(e, created) for e in self.endpoints.get(app, [])]
        return wire.page(request, [(endpoint["id"], endpoint) for endpoint in endpoints])

    async def _attempts(self, request: web.Request) -> web.StreamResponse:
        """A message's: one for each of the application's endpoints, with the status set for it."""
        app = request.match_info["app"]
        message = self._by_id.get((app, request.match_info["id"]))
        if message is None:
            return wire.error(404, "not_found", "Entity not found")
        attempts = [wire.attempt_out(message, endpoint) for endpoint in self._attempted(app)]
        return wire.page(request, [(attempt["id"], attempt) for attempt in attempts])

    async def _attempts_at(self, request: web.Request) -> web.StreamResponse:
        """An endpoint's: one for each message."""
        app = request.match_info["app"]
        attempts = [
            wire.attempt_out(message, endpoint)
            for endpoint in self._attempted(app)
            if endpoint["id"] == request.match_info["id"]
            for message in self._held(app, request)
        ]
        return wire.page(request, [(attempt["id"], attempt) for attempt in attempts])

    async def _destinations(self, request: web.Request) -> web.StreamResponse:
        """The endpoints that a message was attempted at, and how it stands with each."""
        app = request.match_info["app"]
        message = self._by_id.get((app, request.match_info["id"]))
        if message is None:
            return wire.error(404, "not_found", "Entity not found")
        created = self.applications[app].isoformat()
        attempted = self._attempted(app)
        standing = [wire.destination_out(message, endpoint, created) for endpoint in attempted]
        return wire.page(request, [(endpoint["id"], endpoint) for endpoint in standing])

    def _attempted(self, app: str) -> list[dict[str, Any]]:
        return [e for e in self.endpoints.get(app, []) if e.get("attempted", True)]

    def _now(self) -> datetime:
        return datetime.now(UTC) + self.conduct.clock_offset


async def _serve(arguments: argparse.Namespace) -> None:
    simulator = Simulator(
        token=arguments.token,
        port=arguments.port,
        latency=arguments.latency_ms / 1000,
        rate=arguments.rate,
        burst=arguments.burst,
        retry_after=arguments.retry_after,
    )
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with simulator:
        print(f"Svix simulator on {simulator.url}", flush=True)
        await stopped.wait()


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m local.simulator", description=__doc__)
    parser.add_argument("--port", type=int, default=8071, help="0: any (default: %(default)s)")
    parser.add_argument("--token", default="testsk_local", help="(default: %(default)s)")
    parser.add_argument("--latency-ms", type=float, default=0, help="before each answer")
    parser.add_argument("--rate", type=float, help="calls a second (default: no limit)")
    parser.add_argument("--burst", type=float, default=50, help="(default: %(default)g)")
    parser.add_argument("--retry-after", help="of a 429: seconds, date, or any text")
    arguments = parser.parse_args(argv)
    try:
        asyncio.run(_serve(arguments))
    except OSError as failure:
        print(f"Port {arguments.port} can't be listened on: {failure}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
