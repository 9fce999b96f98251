"""The function's source with one path more, which tells what its worker holds: for the soak.

`GET /inspect` answers how many tasks there are and how many objects the collector tracks.
"""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any, cast

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

import main

handle: Callable[[Request], Awaitable[Response]] = cast("Any", main.notifications)


@functions_framework.aio.http
async def notifications(request: Request) -> Response:
    """As `main` does it, or what the worker holds."""
    if request.url.path == "/inspect":
        gc.collect()
        return JSONResponse({"tasks": len(asyncio.all_tasks()), "objects": len(gc.get_objects())})
    return await handle(request)
