"""The function with an extra path that shows what its worker holds, for `bench/soak.py`.

`GET /inspect` answers with the number of tasks and of objects that the garbage collector tracks.
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
    """Answer `/inspect` here, and pass everything else to `main`."""
    if request.url.path == "/inspect":
        gc.collect()
        return JSONResponse({"tasks": len(asyncio.all_tasks()), "objects": len(gc.get_objects())})
    return await handle(request)
