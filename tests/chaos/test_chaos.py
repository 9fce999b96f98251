"""Real processes are killed at random. Then every event must be in Svix once, and no claim left.

The Pub/Sub emulator pushes to the function. Meanwhile the function's worker is killed at random,
Firestore is paused (SIGSTOP) or down, and Svix fails, hangs and loses answers. SOAK=1 runs the full
length with production's leases. Otherwise the run has a fifth of the events, and short leases, so
that more leases end.
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
LEASE = 6.0  # seconds, if leases are short
PATIENCE = 600 if SOAK else 100  # seconds after the last fault, for leases to end and for retries

# After each of these, the relay can't know whether Svix has the message. A 202 would say so.
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
    """Everything that runs, and a count of the faults so far."""

    svix: Svix
    relay: Function
    firestore: Server
    proxy: Proxy
    rng: random.Random
    done: Counter[str] = field(default_factory=Counter)

    async def kill_worker(self) -> None:
        """Kill the worker (SIGKILL). The server's master starts another one."""
        for worker in psutil.Process(self.relay.server.pid).children():
            worker.kill()
            self.done["workers killed"] += 1

    async def pause_firestore(self) -> None:
        """Stop Firestore (SIGSTOP) for up to 6 s, longer than a call to the ledger may take."""
        self.firestore.send_signal(signal.SIGSTOP)
        await asyncio.sleep(self.rng.uniform(0.5, 6))
        self.firestore.send_signal(signal.SIGCONT)
        self.done["Firestore paused"] += 1

    async def stop_firestore(self) -> None:
        """Drop the connections to Firestore for up to 3 s."""
        await self.proxy.down()
        await asyncio.sleep(self.rng.uniform(0.2, 3))
        self.proxy.up()
        self.done["Firestore gone"] += 1

    async def break_svix(self) -> None:
        """Let Svix have one of its faults for up to 3 s."""
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
        """Create the topic, and a subscription without a retry policy (about 1 s to a retry)."""
        topic = f"projects/{self.project}/topics/events"
        subscription = {
            "topic": topic,
            "pushConfig": {"pushEndpoint": endpoint},
            "ackDeadlineSeconds": 10,
        }
        async with httpx.AsyncClient(base_url=self.url, timeout=60) as client:
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
    """The fields of all documents of a collection, in the format of Firestore's REST API."""
    found: list[dict[str, Any]] = []
    url = f"http://{address}/v1/projects/{project}/databases/(default)/documents/{collection}"
    query = {"pageSize": "300", "pageToken": ""}
    headers = {"Authorization": "Bearer owner"}  # the emulator's administrator
    async with httpx.AsyncClient(timeout=60) as client:
        while True:
            page = (await client.get(url, params=query, headers=headers)).json()
            found += [document["fields"] for document in page.get("documents", [])]
            if not (token := page.get("nextPageToken")):
                return found
            query["pageToken"] = token


@pytest.mark.time_limit(1_800 if SOAK else 240)
async def test_no_event_is_lost_or_sent_twice(
    own_firestore_emulator: tuple[str, Server],
    pubsub_emulator: str,
    google_project: str,
    tmp_path: Path,
    figures: Callable[[str], None],
) -> None:
    """Each event is in Svix once, each record is delivered, and only the poison is parked."""
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
                never = tmp_path / "kill-point"  # the test itself kills the worker
                never.touch()
                environment |= {"KILL_POINT": str(never), "LEASE_SECONDS": f"{LEASE:g}"}
                environment["PYTHONPATH"] = str(ROOT)
            with function(svix.url, source, **environment) as relay:
                chaos = Chaos(svix, relay, firestore, proxy, random.Random(SEED))  # noqa: S311 - repeatable
                topic = PubSub(f"http://{pubsub_emulator}", project)
                await topic.create(relay.notifications)
                await _cause_faults(chaos, topic, bodies + poison)
                over = time.monotonic()
                await _await_all(address, project)
                settled_in = time.monotonic() - over
                outcomes = Counter(line["outcome"] for line in relay.lines())
                held = svix.control.summary()
        records = await documents(address, project, "events")
        letters = await documents(address, project, "dead_letters")
    figures(
        f"chaos: {EVENTS} of {FULL:,} events and {POISON} poison events, seed {SEED}, in"
        f" {time.monotonic() - began:.0f} s, {dict(chaos.done)}, answers {dict(outcomes)},"
        f" {sum(int(r['attempts']['integerValue']) > 1 for r in records)} events claimed again,"
        f" settled {settled_in:.0f} s after the last fault"
    )
    assert chaos.done["workers killed"] >= KILLS
    assert held["events"] == held["messages"] == EVENTS
    assert held["stored_twice"] == []
    assert len(records) == EVENTS
    assert len(letters) == POISON


async def _cause_faults(chaos: Chaos, topic: PubSub, bodies: list[Any]) -> None:
    """Publish in batches and cause one fault after the other, until both are done."""
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
    """Wait until every event is recorded as delivered and all poison is parked."""
    give_up_at = time.monotonic() + PATIENCE
    while True:
        records = await documents(address, project, "events")
        states = Counter(record["state"]["stringValue"] for record in records)
        letters = await documents(address, project, "dead_letters")
        if states["delivered"] == EVENTS and len(letters) == POISON:
            return
        assert time.monotonic() < give_up_at, f"{dict(states)}, {len(letters)} dead letters"
        await asyncio.sleep(0.5)
