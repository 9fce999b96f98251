"""No answer and no log line holds a payload, personal data or the token, at any log level.

The function runs as a process, at the lowest and the highest level, until every outcome has
occurred. Every event contains a marker. Everything that the function printed or answered is
searched for the marker and for the token. Outcomes that take time are made at the same time, each
in a project of its own.
"""

import asyncio
import base64
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from local.control import Control
from tests.function import JSON, TOKEN, Function, event, function, simulator, wrapped

MARK = "ada.lovelace.1815"
"""Personal data. It is in every event's data, as a key and as a value, and in attributes."""

SECRETS = [MARK, TOKEN, base64.b64encode(MARK.encode()).decode()[:16], "Traceback", "Bearer"]


def marked(event_id: str, **more: Any) -> dict[str, Any]:
    """An event about a person."""
    data = {"email": f"{MARK}@example.com", MARK: [MARK]}
    return event(event_id, data=data, actor={"name": MARK}, **more)


ECHO = {"X-Echo": MARK, "Location": f"/{MARK}"}
"""Headers of Svix's answers, which may repeat parts of the request."""


class Gathered:
    """All answers of the function, and the outcomes in them."""

    def __init__(self, url: str) -> None:
        self.client = httpx.AsyncClient(base_url=url, timeout=60)
        self.text = ""
        self.outcomes: set[str] = set()

    async def post(self, body: Any, **headers: str) -> httpx.Response:
        """Post a body, and keep the answer with its headers."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = await self.client.post(
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
    json.dumps(marked("msg_1")).encode(),
    json.dumps({**marked("evt_1"), "n": f"\ud800{MARK}"}).encode(),
    json.dumps(marked("evt_1")).replace('"data": {', '"data": {"x": NaN, ').encode(),
    json.dumps({"message": {"data": f"{MARK}=", "attributes": {MARK: MARK}}}).encode(),
    json.dumps({"message": {"data": {MARK: MARK}, "messageId": f"{MARK}\n"}}).encode(),
    json.dumps({"message": {"data": 1}, "subscription": f"{MARK}\x1b[0m"}).encode(),
]


@dataclass(frozen=True, slots=True)
class Trial:
    """One function with its Svix, which is led through every outcome."""

    svix: Control
    relay: Function
    gathered: Gathered

    async def every_outcome(self) -> None:
        """Make every outcome occur. The rate limit comes last, because it affects every project."""
        await self.plain()
        async with asyncio.TaskGroup() as together:
            together.create_task(self.held())
            together.create_task(self.dropped())
            for status in (400, 422, 413, 401):
                together.create_task(self.answered(status, pushed=True))
            # Only by hand: a second nack would be spaced from the 401's by half a minute.
            together.create_task(self.answered(302, pushed=False))
        self.svix.inject("status", status=429, headers={"Retry-After": "3600", **ECHO})
        await self.gathered.post(marked("evt_limited"))
        await self.gathered.client.aclose()

    async def plain(self) -> None:
        """Make the outcomes that do not depend on Svix's answers."""
        await self.gathered.post(marked("evt_ok"))
        await self.gathered.post(marked("evt_ok"))
        await self.gathered.post({**marked("evt_ok"), "changed": MARK})
        for body in NOT_EVENTS:
            await self.gathered.post(body)
            await self.gathered.post(wrapped(body, "1", deliveryAttempt=3))
            await self.gathered.post(body, **{"x-goog-pubsub-message-id": "2"})

    async def answered(self, status: int, *, pushed: bool) -> None:
        """Let Svix answer with this status, and repeat parts of the request."""
        project = f"answered-{status}"
        self.svix.inject("status", status=status, body="json", headers=ECHO, app=project)
        await self.gathered.post(marked("evt_by_hand", project=project))
        if pushed:
            body = json.dumps(marked("evt_pushed", project=project)).encode()
            await self.gathered.post(wrapped(body, str(status)))

    async def held(self) -> None:
        """Let Svix hang, and post the event again meanwhile."""
        self.svix.inject("hang", app="held", times=1)
        held = marked("evt_held", project="held")
        await asyncio.gather(self.gathered.post(held), self.gathered.post(held))

    async def dropped(self) -> None:
        """Let Svix break off its connections for longer than a request waits."""
        self.svix.inject("drop", app="dropped")
        await self.gathered.post(marked("evt_dropped", project="dropped"))


@contextlib.contextmanager
def trial(folder: Path, level: str) -> Iterator[Trial]:
    """A function that logs at this level, and its Svix."""
    settings = {
        "LEDGER": f"sqlite:{folder}/{level}.db",
        "REQUEST_BUDGET_SECONDS": "30",
        "LOG_LEVEL": level,
        "GUNICORN_LOG_LEVEL": "debug" if level == "DEBUG" else "error",
    }
    with simulator() as svix, function(svix.url, **settings) as relay:
        yield Trial(svix.control, relay, Gathered(relay.url))


async def test_no_personal_data_and_no_token_leaks(tmp_path: Path) -> None:
    """After every outcome, at both log levels, no secret is in the output or in an answer."""
    with trial(tmp_path, "DEBUG") as loud, trial(tmp_path, "CRITICAL") as quiet:
        await asyncio.gather(loud.every_outcome(), quiet.every_outcome())
        shown = {"delivered", "duplicate", "rate_limited", "unavailable"}
        shown |= {"misconfigured", "rejected", "malformed"}
        logged = {line["outcome"] for line in loud.relay.lines() if "outcome" in line}
        assert logged >= shown
        for each in (loud, quiet):
            assert each.gathered.outcomes >= shown
            assert each.svix.summary()["messages"] > 0
            for secret in SECRETS:
                assert secret not in each.relay.server.output(), f"{secret} was logged"
                assert secret not in each.gathered.text, f"{secret} was answered"
