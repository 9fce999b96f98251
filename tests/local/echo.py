"""A function that answers as the message says, for the stack's tests.

The text is the push's data, or the whole body if it is not a push. It ends with the status of the
answer. If it contains "hang", the first push is never answered. If it contains "slow", the answer
comes a second later.
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
    """Answer one push."""
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
