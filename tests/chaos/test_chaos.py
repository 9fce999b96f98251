"""Real processes, killed: every event is in Svix once all the same, and no claim stays behind.

The Pub/Sub emulator pushes to the function while its worker is killed at random, Firestore is
paused (SIGSTOP) and gone, and Svix fails, hangs and loses answers. SOAK=1 does it at full length
and with the leases of production; else it is a fifth, with short ones, which run out more often.
"""

import asyncio
import base64
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from local.processes import Server
from tests.chaos.proxy import Proxy, proxying
from tests.function import ROOT, Function, Svix, event, function, simulator

SEED = 20261124
SOAK = os.environ.get("SOAK") == "1"
FULL = 1_000  # events
EVENTS, KILLS = (FULL, 50) if SOAK else (200, 10)
POISON = EVENTS // 50
LEASE = 6.0  # seconds, where leases are short
PATIENCE = 600 if SOAK else 100  # seconds after the last fault: leases run out, and retries come

# All that leave it open whether Svix has the message. A 202 means that it has, whatever its body.
SVIX_FAULTS: list[dict[str, Any]] = [
    {"kind": "status", "status": 503, "body": "html"},
    {"kind": "status", "status": 500},
    {"kind": "status", "status": 429, "headers": {"Retry-After": "1"}},
    {"kind": "hang"},
    {"kind": "drop"},
    {"kind": "lose_answer"},
    {"kind": "store_then_status", "status": 500},
]


@dataclass(slots=True)
class Chaos:
    """Everything that runs, and what has been done to it."""

    svix: Svix
    relay: Function
    firestore: Server
    proxy: Proxy
    rng: random.Random
    done: Counter[str] = field(default_factory=Counter)

    async def kill_worker(self) -> None:
        """SIGKILL; the server's master starts another."""
        for worker in psutil.Process(self.relay.server.pid).children():
            worker.kill()
            self.done["workers killed"] += 1

    async def pause_firestore(self) -> None:
        """SIGSTOP for up to six seconds, one more than a call to the ledger may take."""
        self.firestore.send_signal(signal.SIGSTOP)
        await asyncio.sleep(self.rng.uniform(0.5, 6))
        self.firestore.send_signal(signal.SIGCONT)
        self.done["Firestore paused"] += 1

    async def stop_firestore(self) -> None:
        """Dropped connections for up to three seconds."""
        await self.proxy.down()
        await asyncio.sleep(self.rng.uniform(0.2, 3))
        self.proxy.up()
        self.done["Firestore gone"] += 1

    async def break_svix(self) -> None:
        """One of the faults for up to three seconds."""
        fault = self.rng.choice(SVIX_FAULTS)
        await asyncio.to_thread(self.svix.control.inject, **fault)
        await asyncio.sleep(self.rng.uniform(0.2, 3))
        await asyncio.to_thread(self.svix.control.clear_faults)
        self.done["Svix broken"] += 1


@dataclass(frozen=True, slots=True)
class PubSub:
    """A topic of the emulator."""

    url: str
    project: str

    async def create(self, endpoint: str) -> None:
        """The topic, and a subscription without a retry policy: about a second to a retry."""
        topic = f"projects/{self.project}/topics/events"
        subscription = {
            "topic": topic,
            "pushConfig": {"pushEndpoint": endpoint},
            "ackDeadlineSeconds": 10,
        }
        async with httpx.AsyncClient(base_url=self.url) as client:
            (await client.put(f"/v1/{topic}")).raise_for_status()
            path = f"/v1/projects/{self.project}/subscriptions/relay"
            (await client.put(path, json=subscription)).raise_for_status()

    async def publish(self, bodies: list[Any]) -> None:
        """Publish JSON bodies."""
        messages = [{"data": base64.b64encode(json.dumps(b).encode()).decode()} for b in bodies]
        async with httpx.AsyncClient(base_url=self.url, timeout=60) as client:
            path = f"/v1/projects/{self.project}/topics/events:publish"
            (await client.post(path, json={"messages": messages})).raise_for_status()


async def documents(address: str, project: str, collection: str) -> list[dict[str, Any]]:
    """All documents of a collection: their fields, as Firestore's REST API words them."""
    found: list[dict[str, Any]] = []
    url = f"http://{address}/v1/projects/{project}/databases/(default)/documents/{collection}"
    query = {"pageSize": "300", "pageToken": ""}
    headers = {"Authorization": "Bearer owner"}  # the emulator's word for an administrator
    async with httpx.AsyncClient(timeout=60) as client:
        while True:
            page = (await client.get(url, params=query, headers=headers)).json()
            found += [document["fields"] for document in page.get("documents", [])]
            if not (token := page.get("nextPageToken")):
                return found
            query["pageToken"] = token


@pytest.mark.time_limit(1_800 if SOAK else 240)
async def test_nothing_is_lost_and_nothing_goes_twice(
    own_firestore_emulator: tuple[str, Server],
    pubsub_emulator: str,
    google_project: str,
    tmp_path: Path,
    figures: Callable[[str], None],
) -> None:
    """Each event in Svix once, every record delivered, dead letters for the poison alone."""
    project = google_project
    address, firestore = own_firestore_emulator
    bodies = [event(f"evt_{number}", data={"n": number}) for number in range(EVENTS)]
    poison = [{"poison": number} for number in range(POISON)]
    began = time.monotonic()
    with simulator() as svix:
        async with proxying(address) as proxy:
            environment = {
                "GOOGLE_CLOUD_PROJECT": project,
                "FIRESTORE_EMULATOR_HOST": f"127.0.0.1:{proxy.port}",
                "REQUEST_BUDGET_SECONDS": "30",
            }
            source = ROOT / "main.py"
            if not SOAK:
                source = ROOT / "tests" / "chaos" / "killable.py"
                never = tmp_path / "kill-point"  # it is killed from here instead
                never.touch()
                environment |= {"KILL_POINT": str(never), "LEASE_SECONDS": f"{LEASE:g}"}
                environment["PYTHONPATH"] = str(ROOT)
            with function(svix.url, source, **environment) as relay:
                chaos = Chaos(svix, relay, firestore, proxy, random.Random(SEED))  # noqa: S311 - repeatable
                topic = PubSub(f"http://{pubsub_emulator}", project)
                await topic.create(relay.notifications)
                await _wreak(chaos, topic, bodies + poison)
                over = time.monotonic()
                await _await_all(address, project)
                settled_in = time.monotonic() - over
                outcomes = Counter(line["outcome"] for line in relay.lines())
                held = svix.control.summary()
        records = await documents(address, project, "events")
        letters = await documents(address, project, "dead_letters")
    figures(
        f"chaos: {EVENTS} of {FULL:,} events and {POISON} poison, seed {SEED}, in"
        f" {time.monotonic() - began:.0f} s, {dict(chaos.done)}, answers {dict(outcomes)},"
        f" {sum(int(r['attempts']['integerValue']) > 1 for r in records)} events claimed again,"
        f" settled {settled_in:.0f} s after the last fault"
    )
    assert chaos.done["workers killed"] >= KILLS
    assert held["events"] == held["messages"] == EVENTS
    assert held["doubles"] == []
    assert len(records) == EVENTS
    assert len(letters) == POISON


async def _wreak(chaos: Chaos, topic: PubSub, bodies: list[Any]) -> None:
    """Publish bit by bit, and do one bad thing after the other, until all of both is done."""
    chaos.rng.shuffle(bodies)
    batch = -(-len(bodies) // KILLS)
    others: list[Callable[[], Awaitable[None]]] = [
        chaos.break_svix,
        chaos.break_svix,
        chaos.pause_firestore,
        chaos.stop_firestore,
    ]
    for start in range(0, len(bodies), batch):
        await topic.publish(bodies[start : start + batch])
        await chaos.rng.choice(others)()
        await asyncio.sleep(chaos.rng.uniform(0, 0.5))
        await chaos.kill_worker()
    while chaos.done["workers killed"] < KILLS:
        await asyncio.sleep(chaos.rng.uniform(0.5, 1.5))
        await chaos.kill_worker()


async def _await_all(address: str, project: str) -> None:
    """Until every event is recorded as delivered and all poison is parked."""
    give_up_at = time.monotonic() + PATIENCE
    while True:
        records = await documents(address, project, "events")
        states = Counter(record["state"]["stringValue"] for record in records)
        letters = await documents(address, project, "dead_letters")
        if states["delivered"] == EVENTS and len(letters) == POISON:
            return
        assert time.monotonic() < give_up_at, f"{dict(states)}, {len(letters)} dead letters"
        await asyncio.sleep(0.5)
