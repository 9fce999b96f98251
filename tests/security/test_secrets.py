"""No payload, personal datum or token gets out: not in an answer, not in a log, at any level.

The function runs as a process; everything it printed and answered is searched for marks that
were put into the events and the token, after every outcome has been seen.
"""

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from local.control import Control
from tests.function import JSON, TOKEN, event, function, simulator, wrapped

MARK = "ada.lovelace.1815"
"""Stands for a person: it is in every event's data, key and value, and in attributes."""

SECRETS = [MARK, TOKEN, base64.b64encode(MARK.encode()).decode()[:16], "Traceback", "Bearer"]


def marked(event_id: str, **more: Any) -> dict[str, Any]:
    """An event about a person."""
    data = {"email": f"{MARK}@example.com", MARK: [MARK]}
    return event(event_id, data=data, actor={"name": MARK}, **more)


class Gathered:
    """What the function answered, and which outcomes it was made to show."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.text = ""
        self.outcomes: set[str] = set()

    async def post(self, body: Any, **headers: str) -> httpx.Response:
        """Post a body and keep the answer, head and all."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = await self._client.post(
            "/notifications", content=content, headers={**JSON, **headers}
        )
        self.text += f"{answer.headers}\n{answer.text}\n"
        self.outcomes.add(answer.json()["outcome"])
        return answer


NOT_EVENTS: list[bytes] = [
    f'{{"id": "{MARK}'.encode(),
    MARK.encode(),
    json.dumps([MARK]).encode(),
    json.dumps(marked("evt_1", type=f"{MARK}@x")).encode(),
    json.dumps(marked("evt_1", project=f"../{MARK}")).encode(),
    json.dumps(marked("msg_" + MARK)).encode(),
    json.dumps({**marked("evt_1"), "n": f"\ud800{MARK}"}).encode(),
    json.dumps(marked("evt_1")).replace('"data": {', '"data": {"x": NaN, ').encode(),
    json.dumps({"message": {"data": f"{MARK}=", "attributes": {MARK: MARK}}}).encode(),
    json.dumps({"message": {"data": {MARK: MARK}, "messageId": f"{MARK}\n"}}).encode(),
    json.dumps({"message": {"data": 1}, "subscription": f"{MARK}\x1b[0m"}).encode(),
]


async def every_outcome(gathered: Gathered, svix: Control) -> None:
    """Let the function show all it has."""
    await gathered.post(marked("evt_ok"))
    await gathered.post(marked("evt_ok"))
    await gathered.post({**marked("evt_ok"), "changed": MARK})
    for body in NOT_EVENTS:
        await gathered.post(body)
        await gathered.post(wrapped(body, "1", deliveryAttempt=3))
        await gathered.post(body, **{"x-goog-pubsub-message-id": "2"})
    echo = {"X-Echo": MARK, "Location": f"/{MARK}"}
    for number, status in enumerate([400, 422, 413, 401, 302]):
        svix.inject("status", status=status, body="json", headers=echo)
        await gathered.post(marked(f"evt_refused_{number}"))
        await gathered.post(wrapped(json.dumps(marked(f"evt_p_{number}")).encode(), str(number)))
        svix.clear_faults()
    svix.inject("hang")
    held = [asyncio.create_task(gathered.post(marked("evt_held"))) for _ in range(2)]
    await asyncio.wait(held, return_when=asyncio.FIRST_COMPLETED)
    svix.clear_faults()
    await asyncio.gather(*held)
    svix.inject("drop")
    await gathered.post(marked("evt_dropped"))
    svix.clear_faults()
    async with asyncio.timeout(30):
        while (await gathered.post(marked("evt_dropped"))).status_code != 200:
            pass  # the pause after an outage
    svix.inject("status", status=429, headers={"Retry-After": "3600", **echo})
    await gathered.post(marked("evt_limited"))


@pytest.mark.parametrize("level", ["DEBUG", "CRITICAL"])
async def test_nothing_personal_and_no_token_gets_out(tmp_path: Path, level: str) -> None:
    """Every outcome, at the chattiest and the quietest level: none of the marks is anywhere."""
    with (
        simulator() as svix,
        function(
            svix.url,
            LEDGER=f"sqlite:{tmp_path}/ledger.db",
            REQUEST_BUDGET_SECONDS="25",
            LOG_LEVEL=level,
            GUNICORN_LOG_LEVEL="debug" if level == "DEBUG" else "error",
        ) as relay,
    ):
        async with httpx.AsyncClient(base_url=relay.url, timeout=60) as client:
            gathered = Gathered(client)
            await every_outcome(gathered, svix.control)
        outcomes = {line["outcome"] for line in relay.lines()}
        output = relay.server.output()
        assert svix.control.summary()["messages"] > 0
    shown = {"delivered", "duplicate", "in_progress", "rate_limited", "unavailable"}
    assert gathered.outcomes == shown | {"misconfigured", "rejected", "malformed"}
    if level == "DEBUG":
        assert outcomes == gathered.outcomes
    for secret in SECRETS:
        assert secret not in output, f"{secret} was logged"
        assert secret not in gathered.text, f"{secret} was answered"
