"""A function that does nothing but answer, with the imports that FLOOR names: the least there is.

`FLOOR=` is the framework alone, `FLOOR=svix,google.cloud.firestore` what any relay has to load.
"""

import importlib
import os

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import Response

for name in filter(None, os.environ.get("FLOOR", "").split(",")):
    importlib.import_module(name)


@functions_framework.aio.http
async def notifications(_request: Request) -> Response:
    """One push, taken for nothing."""
    return Response()
