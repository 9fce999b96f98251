"""The Cloud Function: receives HTTP requests and answers them. `relay/` decides the answers."""

import math
import os
import sys
from typing import Any

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from relay.config import ConfigurationError, Settings
from relay.envelope import Names
from relay.outcome import Result
from relay.worker import Worker, collect_less_garbage, ledger_opener

# The framework passes Cloud Run's request timeout to gunicorn as a worker timeout. Cloud Run
# freezes idle instances. If an instance is thawed after that timeout, gunicorn kills the worker
# together with the request that woke the instance. 0 turns the worker timeout off; Cloud Run still
# ends requests that take too long. The framework reads this variable after importing this module.
os.environ["CLOUD_RUN_TIMEOUT_SECONDS"] = "0"

try:
    SETTINGS = Settings.from_environment(os.environ)
except ConfigurationError as fault:
    sys.exit(str(fault))

_open_ledger = ledger_opener(SETTINGS, create=True)
_worker: Worker | None = None


class _Json(JSONResponse):
    """JSON that ends with a newline, so that in a terminal each answer has a line of its own."""

    def render(self, content: Any) -> bytes:
        return super().render(content) + b"\n"


@functions_framework.aio.http
async def notifications(request: Request) -> Response:
    """Answer `POST /notifications`, which brings one event, pushed by Pub/Sub or posted by hand.

    Also answers `POST /reconcile`: Cloud Scheduler calls it to compare the ledger with Svix.
    """
    global _worker  # noqa: PLW0603 - created once per worker process, by its first request
    path = request.scope["path"]  # cheaper than `request.url`, which parses the URL again
    if path not in {"/notifications", "/reconcile"}:
        return _Json({"detail": "not found: events go to /notifications"}, 404)
    if request.method != "POST":
        return _Json({"detail": "only POST is accepted here"}, 405, {"Allow": "POST"})
    if _worker is None:
        _worker = Worker(SETTINGS, _open_ledger)
        collect_less_garbage()
    if path == "/reconcile":
        return _Json(await _worker.reconcile())
    return _answer(*await _worker.handle(request.stream(), request.headers))


def _answer(result: Result, names: Names) -> Response:
    body = {
        "outcome": result.outcome,
        "event_id": names.id,
        "project": names.project,
        "svix_message_id": result.svix_message_id,
        "detail": result.detail,
        "remark": result.remark,
        "dead_letter": result.dead_letter,
    }
    headers = {}
    if result.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(result.retry_after)))
    present = {name: value for name, value in body.items() if value is not None}
    return _Json(present, result.status, headers)
