"""The gate that every call to the API passes: token, rate limit, faults, and idempotency keys."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from local.behaviour import Behaviour, Call, Fault
from local.svix import wire
from local.svix.server import Drip, Reset

_KEY_LIFETIME = timedelta(hours=12)
_KEY_WAIT = 5.0  # seconds that a second call with the same key waits for the first
_CALLS_KEPT = 300_000
Handler = Callable[[Request], Awaitable[Response]]


class _Bucket:
    """The token bucket of the rate limit."""

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


@dataclass(slots=True)
class _Keyed:
    """The first call with an idempotency key. `answer` becomes None if the call got no 2xx."""

    at: datetime
    answer: asyncio.Future[Response | None]


class Gate:
    """Passes calls on to their handlers, or answers them itself."""

    def __init__(self, tokens: set[str], behaviour: Behaviour, now: Callable[[], datetime]) -> None:
        self.calls: deque[Call] = deque(maxlen=_CALLS_KEPT)
        self.behaviour = behaviour
        self._tokens = tokens
        self._now = now
        self._bucket = _Bucket(behaviour.burst)
        self._faults: list[Fault] = []
        self._faults_cleared = asyncio.Event()
        self._keys: dict[tuple[str, ...], _Keyed] = {}

    def inject(self, fault: Fault) -> None:
        """Add a fault."""
        self._faults_cleared.clear()
        self._faults.append(fault)

    def clear_faults(self) -> None:
        """Remove all faults. Calls that hang are reset."""
        self._faults.clear()
        self._faults_cleared.set()

    def forget_keys(self) -> None:
        """Forget all idempotency keys, as a restart does."""
        self._keys.clear()

    def guarded(self, handler: Handler) -> Handler:
        """The handler behind the gate."""

        async def guarded(request: Request) -> Response:
            response: Response = Reset()
            status = 0
            try:
                response = await self._answer(request, handler)
                status = 0 if isinstance(response, Reset) else response.status_code
            except ClientDisconnect:
                pass  # the client left before its request was complete
            finally:
                path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
                self.calls.append(Call(time.monotonic(), request.method, path, status))
            return response

        return guarded

    async def _answer(self, request: Request, handler: Handler) -> Response:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or token not in self._tokens:
            return refused(wire.error(401, "authentication_failed", "Invalid token"))
        behaviour = self.behaviour
        if behaviour.rate is not None and not self._bucket.take(behaviour.rate, behaviour.burst):
            await asyncio.sleep(behaviour.latency)
            return refused(self._too_many())
        if fault := self._next_fault(request):
            return await self._fail(fault, request, handler)
        return await self._once(request, handler)

    def _too_many(self) -> wire.Refusal:
        headers = {}
        match self.behaviour.retry_after:
            case "seconds":
                headers["Retry-After"] = "1"
            case "date":
                soon = datetime.now(UTC) + timedelta(seconds=2)
                headers["Retry-After"] = format_datetime(soon, usegmt=True)
            case str() as text:
                headers["Retry-After"] = text
        return wire.error(429, "rate_limit", "Too many requests", headers)

    # -- faults

    def _next_fault(self, request: Request) -> Fault | None:
        app = request.path_params.get("app")
        for fault in self._faults:
            if fault.method in {request.method, "*"} and fault.app in {None, app}:
                if fault.times is not None:
                    fault.times -= 1
                    if not fault.times:
                        self._faults.remove(fault)
                return fault
        return None

    async def _fail(  # noqa: PLR0911 - a return for each kind
        self, fault: Fault, request: Request, handler: Handler
    ) -> Response:
        match fault.kind:
            case "hang":
                await self._faults_cleared.wait()
                return Reset()
            case "drop":
                return Reset()
            case "drip":
                await self._run(request, handler)
                return Drip(self._faults_cleared)
            case "lose_answer":
                await self._once(request, handler)
                return Reset()
            case "store_then_status":
                await self._run(request, handler)
            case "store_unqueued":
                request.state.is_unqueued = True
                await self._run(request, handler)
            case "race":
                return refused(wire.conflict())
        if fault.body == "json":
            words = wire.error(fault.status, "server_error", "Something went wrong", fault.headers)
            return refused(words)
        return Response(wire.BODIES[fault.body], fault.status, fault.headers)

    # -- idempotency

    async def _once(self, request: Request, handler: Handler) -> Response:
        """Run the handler, or repeat the answer to the first call with this token, URL and key."""
        key = request.headers.get("idempotency-key")
        if key is None or request.method != "POST":
            return await self._run(request, handler)
        slot = (request.headers["authorization"], str(request.url), key)
        kept = self._keys.get(slot)
        if kept is not None and self._now() - kept.at < _KEY_LIFETIME:
            waiting = asyncio.wait([kept.answer], timeout=_KEY_WAIT)
            done, _ = await waiting
            first = kept.answer.result() if done else None
            if first is not None:
                return Response(first.body, first.status_code, media_type="application/json")
            if self._keys.get(slot) not in {None, kept}:
                return Response(status_code=500)  # another waiting call is running the handler
        return await self._first(slot, request, handler)

    async def _first(self, slot: tuple[str, ...], request: Request, handler: Handler) -> Response:
        """Run the handler, and keep the answer if it is a 2xx."""
        mine = _Keyed(self._now(), asyncio.get_running_loop().create_future())
        self._keys[slot] = mine
        response = None
        try:
            response = await self._run(request, handler)
        finally:
            is_good = response is not None and 200 <= response.status_code < 300  # noqa: PLR2004 - a 2xx
            mine.answer.set_result(response if is_good else None)
            if is_good:
                self._keys[slot] = mine
            else:
                self._keys.pop(slot, None)
        return response

    async def _run(self, request: Request, handler: Handler) -> Response:
        await asyncio.sleep(self.behaviour.latency)
        try:
            return await handler(request)
        except wire.Refusal as refusal:
            return refused(refusal)


def refused(refusal: wire.Refusal) -> Response:
    """A refusal as a response."""
    headers = dict(refusal.headers) if refusal.headers else None
    return JSONResponse(refusal.body, refusal.status, headers)
