"""The simulator's own API under `/control`, and a client for it: what is held, limits, faults.

GET    /control/messages?app=      what is held        GET  /control/summary   counts
GET    /control/calls              every call          PUT  /control/conduct   change some
POST   /control/faults             add one             DELETE /control/faults  end all
PUT    /control/endpoints/APP      an application's endpoints and their attempts' status
POST   /control/refuse             {"seconds": n}: refuse connections for so long
POST   /control/reset              forget everything
"""

import asyncio
from collections import Counter
from dataclasses import asdict, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import httpx
from aiohttp import web

from local.conduct import Fault

if TYPE_CHECKING:
    from local.simulator import Simulator


def routes(simulator: "Simulator") -> list[web.RouteDef]:  # noqa: C901 - a list of short ones
    """The control API of one simulator."""

    async def messages(request: web.Request) -> web.Response:
        app = request.query.get("app")
        held = [asdict(m) for m in simulator.messages if app in {None, m.app}]
        for message in held:
            message["received_at"] = message["received_at"].isoformat()
        return web.json_response(held)

    async def summary(_request: web.Request) -> web.Response:
        events = Counter((m.app, m.event_id) for m in simulator.messages)
        return web.json_response(
            {
                "messages": len(simulator.messages),
                "events": len(events),
                "doubles": [list(event) for event, count in events.items() if count > 1],
                "statuses": Counter(str(call.status) for call in simulator.calls),
            }
        )

    async def calls(_request: web.Request) -> web.Response:
        return web.json_response([asdict(call) for call in simulator.calls])

    async def conduct(request: web.Request) -> web.Response:
        changes = await request.json()
        if "clock_offset" in changes:
            changes["clock_offset"] = timedelta(seconds=changes["clock_offset"])
        simulator.conduct = replace(simulator.conduct, **changes)
        return web.json_response({})

    async def faults(request: web.Request) -> web.Response:
        simulator.inject(Fault(**await request.json()))
        return web.json_response({})

    async def clear_faults(_request: web.Request) -> web.Response:
        simulator.clear_faults()
        return web.json_response({})

    async def endpoints(request: web.Request) -> web.Response:
        simulator.endpoints[request.match_info["app"]] = await request.json()
        return web.json_response({})

    refusals: set[asyncio.Task[None]] = set()

    async def refuse(request: web.Request) -> web.Response:
        seconds = (await request.json())["seconds"]

        async def pause() -> None:
            await asyncio.sleep(0.05)  # for this answer to leave
            await simulator.stop_listening()
            await asyncio.sleep(seconds)
            await simulator.start_listening()

        task = asyncio.create_task(pause())
        refusals.add(task)
        task.add_done_callback(refusals.discard)
        return web.json_response({})

    async def reset(_request: web.Request) -> web.Response:
        simulator.reset()
        return web.json_response({})

    return [
        web.get("/control/messages", messages),
        web.get("/control/summary", summary),
        web.get("/control/calls", calls),
        web.put("/control/conduct", conduct),
        web.post("/control/faults", faults),
        web.delete("/control/faults", clear_faults),
        web.put("/control/endpoints/{app}", endpoints),
        web.post("/control/refuse", refuse),
        web.post("/control/reset", reset),
    ]


class Control:
    """A client of the control API, for other processes. Raises httpx's errors."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=f"{url}/control", timeout=30)

    def messages(self, app: str | None = None) -> list[dict[str, Any]]:
        """What is held."""
        held: list[dict[str, Any]] = self._ask(
            "GET", "messages", params={"app": app} if app else {}
        )
        return held

    def summary(self) -> dict[str, Any]:
        """Counts: messages, events, doubles, and calls by status."""
        counts: dict[str, Any] = self._ask("GET", "summary")
        return counts

    def calls(self) -> list[dict[str, Any]]:
        """Every call."""
        made: list[dict[str, Any]] = self._ask("GET", "calls")
        return made

    def conduct(self, **changes: Any) -> None:
        """Change how it behaves; `clock_offset` in seconds."""
        self._ask("PUT", "conduct", json=changes)

    def inject(self, kind: str, **details: Any) -> None:
        """Let something go wrong, as `Fault` says."""
        self._ask("POST", "faults", json={"kind": kind, **details})

    def clear_faults(self) -> None:
        """Let nothing go wrong any more."""
        self._ask("DELETE", "faults")

    def endpoints(self, app: str, endpoints: list[dict[str, Any]]) -> None:
        """Set an application's endpoints, as Svix shows them, and what comes of their attempts.

        That is `status`, `code`, `nextAttempt`, and `attempted`: false where there is none.
        """
        self._ask("PUT", f"endpoints/{app}", json=endpoints)

    def refuse(self, seconds: float) -> None:
        """Refuse connections for so long."""
        self._ask("POST", "refuse", json={"seconds": seconds})

    def reset(self) -> None:
        """Forget everything."""
        self._ask("POST", "reset")

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _ask(self, method: str, path: str, **more: Any) -> Any:
        answer = self._client.request(method, f"/{path}", **more)
        answer.raise_for_status()
        return answer.json()
