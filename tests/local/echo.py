"""A function that answers as it is told, for the stack's tests.

The event's text, or the body where it is no push, says what to do: words that end with a status.
"hang" never answers the first time, "slow" takes a moment.
"""

import asyncio
import base64
import json

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import Response

_SLOW = 1.0  # seconds


@functions_framework.aio.http
async def notifications(request: Request) -> Response:
    """One push."""
    body = await request.body()
    attempt = 1
    if body.startswith(b"{"):
        push = json.loads(body)
        body, attempt = base64.b64decode(push["message"]["data"]), push["deliveryAttempt"]
    words = body.decode()
    if "hang" in words and attempt == 1:
        await asyncio.Event().wait()
    if "slow" in words:
        await asyncio.sleep(_SLOW)
    return Response(status_code=int(words.split()[-1]))
