"""The page's server: one page, its live numbers as server-sent events, and the buttons' requests.

Loopback only. A random token is part of every address, so that no other page in the same browser,
and no other user of the machine, can press a button here.
"""

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from local.page.journal import SERIES
from local.page.lane import (
    FREEZE_SECONDS,
    PROJECTS,
    Lane,
    Trouble,
    make_broken,
    make_events,
    make_poison,
)
from local.page.stories import STORIES, StoryPlayer
from local.svix.server import Server

_HERE = Path(__file__).parent
_FILES = {"page": "page.html", "page.css": "page.css", "page.js": "page.js"}
_INTERVAL = 0.25  # seconds between two snapshots
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_MOST_AT_ONCE = 5000  # events that one request may publish
_Action = Callable[[Lane, Mapping[str, Any]], Awaitable[None]]


async def _publish(lane: Lane, options: Mapping[str, Any]) -> None:
    count = min(int(options["count"]), _MOST_AT_ONCE)
    projects = PROJECTS[: int(options.get("projects", 1))]
    match options.get("kind", "events"):
        case "events":
            lane.publish(make_events(count, projects))
        case "again":
            lane.publish_again(count)
        case "poison":
            lane.publish(make_poison(count, projects))
        case "broken":
            lane.publish(make_broken(count))


async def _limit(lane: Lane, options: Mapping[str, Any]) -> None:
    lane.set_limit(options["rate"])


async def _trouble(lane: Lane, options: Mapping[str, Any]) -> None:
    await lane.set_trouble(Trouble(options["trouble"]))


async def _endpoints(lane: Lane, options: Mapping[str, Any]) -> None:
    lane.stack.endpoints.answer = (
        HTTPStatus.INTERNAL_SERVER_ERROR if options["fail"] else HTTPStatus.NO_CONTENT
    )


async def _kill(lane: Lane, _options: Mapping[str, Any]) -> None:
    await lane.kill()


async def _freeze(lane: Lane, options: Mapping[str, Any]) -> None:
    lane.freeze(float(options.get("seconds", FREEZE_SECONDS)))


async def _scale(lane: Lane, options: Mapping[str, Any]) -> None:
    await lane.scale(int(options["change"]))


async def _deploy(lane: Lane, _options: Mapping[str, Any]) -> None:
    await lane.stack.deploy()


async def _restart(lane: Lane, _options: Mapping[str, Any]) -> None:
    await lane.restart()


ACTIONS: dict[str, _Action] = {
    "publish": _publish,
    "limit": _limit,
    "trouble": _trouble,
    "endpoints": _endpoints,
    "kill": _kill,
    "freeze": _freeze,
    "scale": _scale,
    "deploy": _deploy,
    "restart": _restart,
}
"""The actions of the buttons, by name."""


class Page:
    """The page for these lanes. `app` serves it. A `scale` below 1 shortens the stories."""

    def __init__(self, lanes: Sequence[Lane], scale: float = 1.0) -> None:
        self.token = secrets.token_urlsafe(16)
        self.lanes = {lane.name: lane for lane in lanes}
        self.player = StoryPlayer(lanes, scale)
        self.failures: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()
        routes = [
            *(Route(f"/{path}", self._file(name)) for path, name in _FILES.items()),
            Route("/live", self._live),
            Route("/life", self._life),
            Route("/do", self._do, methods=["POST"]),
            Route("/story", self._story, methods=["POST"]),
        ]
        # Another site's host name may resolve to loopback (DNS rebinding). It is refused.
        here = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
        self.app = Starlette(routes=[Mount(f"/{self.token}", routes=routes)], middleware=[here])

    def snapshot(self) -> dict[str, Any]:
        """All that the page shows."""
        return {
            "at": time.time(),
            "series": SERIES,
            "lanes": {name: lane.snapshot() for name, lane in self.lanes.items()},
            "story": self.player.snapshot(),
            "is_playing": self.player.is_playing,
        }

    async def close(self) -> None:
        """End the story and the actions that still run."""
        await self.player.end()
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _file(self, name: str) -> Callable[[Request], Awaitable[Response]]:
        async def serve(_request: Request) -> Response:
            return FileResponse(_HERE / name, headers=_HEADERS)

        return serve

    async def _live(self, _request: Request) -> Response:
        async def snapshots() -> AsyncIterator[str]:
            stories = [{"name": s.name, "title": s.title, "about": s.about} for s in STORIES]
            yield f"event: stories\ndata: {json.dumps(stories)}\n\n"
            while True:
                yield f"data: {json.dumps(self.snapshot())}\n\n"
                await asyncio.sleep(_INTERVAL)

        return StreamingResponse(snapshots(), media_type="text/event-stream", headers=_HEADERS)

    async def _life(self, request: Request) -> Response:
        wanted = request.query_params
        lane = self.lanes.get(wanted.get("lane", ""))
        key = (wanted.get("project", ""), wanted.get("id", ""))
        life = lane.journal.life(key) if lane else None
        if life is None:
            return JSONResponse({"detail": "no such event"}, 404, _HEADERS)
        return JSONResponse(life, headers=_HEADERS)

    async def _do(self, request: Request) -> Response:
        options = await request.json()
        if self.player.is_playing:
            return JSONResponse({"detail": "A story is playing. End it first."}, 409, _HEADERS)
        try:
            work = ACTIONS[options["action"]](self.lanes[options["lane"]], options)
        except KeyError as missing:
            return JSONResponse({"detail": f"there is no {missing}"}, 400, _HEADERS)
        if options["action"] == "restart":
            self.player.forget()
        # The action is not awaited: a deployment takes seconds, and the page shows its progress.
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return Response(status_code=204, headers=_HEADERS)

    async def _story(self, request: Request) -> Response:
        options = await request.json()
        await self.player.end()
        if name := options.get("name"):
            try:
                self.player.begin(name)
            except KeyError:
                return JSONResponse({"detail": f"there is no story {name}"}, 400, _HEADERS)
        return Response(status_code=204, headers=_HEADERS)


@contextlib.asynccontextmanager
async def serving(
    lanes: Sequence[Lane], *, port: int = 0, scale: float = 1.0
) -> AsyncIterator[str]:
    """Serve the page for these lanes, which must be entered. Yields its address."""
    page = Page(lanes, scale)
    server = Server(page.app, port)
    await server.start()
    try:
        yield f"http://127.0.0.1:{server.port}/{page.token}/page"
    finally:
        await page.close()
        await server.close()
