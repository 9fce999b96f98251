"""The simulator's own API under `/control`; `local.control` is its client.

GET    /control/messages?app=   the messages that it holds
GET    /control/summary         counts, and the events that are stored twice
GET    /control/calls           every call to the API
PUT    /control/behaviour       change fields of `Behaviour`
POST   /control/faults          add a `Fault`
DELETE /control/faults          remove all faults
POST   /control/refuse          {"seconds": n}: refuse connections for n seconds
POST   /control/restart         forget the idempotency keys
POST   /control/reset           forget everything
"""

import asyncio
from collections import Counter
from dataclasses import asdict, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from local.behaviour import Fault

if TYPE_CHECKING:
    from local.simulator import Simulator
    from local.svix.store import StoredMessage


def routes(simulator: "Simulator") -> list[Route]:  # noqa: C901 - many short handlers
    """The control API of one simulator."""

    async def messages(request: Request) -> Response:
        app = request.query_params.get("app")
        return JSONResponse([_shown(m) for m in simulator.messages if app in {None, m.app}])

    async def summary(_request: Request) -> Response:
        events = Counter((m.app, m.event_id) for m in simulator.messages)
        return JSONResponse(
            {
                "messages": len(simulator.messages),
                "events": len(events),
                "stored_twice": [list(event) for event, count in events.items() if count > 1],
                "statuses": Counter(str(call.status) for call in simulator.calls),
            }
        )

    async def calls(_request: Request) -> Response:
        return JSONResponse([asdict(call) for call in simulator.calls])

    async def behaviour(request: Request) -> Response:
        changes = await request.json()
        if "clock_offset" in changes:
            changes["clock_offset"] = timedelta(seconds=changes["clock_offset"])
        simulator.behaviour = replace(simulator.behaviour, **changes)
        return _done()

    async def faults(request: Request) -> Response:
        simulator.inject(Fault(**await request.json()))
        return _done()

    async def clear_faults(_request: Request) -> Response:
        simulator.clear_faults()
        return _done()

    refusals: set[asyncio.Task[None]] = set()

    async def refuse(request: Request) -> Response:
        seconds = (await request.json())["seconds"]

        async def pause() -> None:
            await asyncio.sleep(0.05)  # this answer goes out first
            await simulator.stop_listening()
            await asyncio.sleep(seconds)
            await simulator.start_listening()

        task = asyncio.create_task(pause())
        refusals.add(task)
        task.add_done_callback(refusals.discard)
        return _done()

    async def restart(_request: Request) -> Response:
        simulator.restart()
        return _done()

    async def reset(_request: Request) -> Response:
        simulator.reset()
        return _done()

    table = [
        ("GET", "messages", messages),
        ("GET", "summary", summary),
        ("GET", "calls", calls),
        ("PUT", "behaviour", behaviour),
        ("POST", "faults", faults),
        ("DELETE", "faults", clear_faults),
        ("POST", "refuse", refuse),
        ("POST", "restart", restart),
        ("POST", "reset", reset),
    ]
    return [Route(f"/control/{path}", handler, methods=[method]) for method, path, handler in table]


def _shown(message: "StoredMessage") -> dict[str, Any]:
    return {
        "app": message.app,
        "id": message.id,
        "event_id": message.event_id,
        "event_type": message.event_type,
        "payload": message.payload,
        "text": message.text,
        "tags": list(message.tags),
        "received_at": message.received_at.isoformat(),
    }


def _done() -> Response:
    return JSONResponse({})
