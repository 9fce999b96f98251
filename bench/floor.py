"""A function that only answers, with the imports that FLOOR names. No function can cost less.

`FLOOR=` is the framework alone. `FLOOR=svix,google.cloud.firestore` is what any relay must load.
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
    """Answer a push with 200, and do nothing."""
    return Response()
