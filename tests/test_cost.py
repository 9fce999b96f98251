"""What an event costs, as far as it can be counted: Firestore's calls, on the wire.

What takes time is measured by `python -m bench`, and never fails a test.
"""

import uuid
from pathlib import Path

import httpx

from bench.calls import counting
from bench.functions import NAIVE, RELAY, function, push, simulator

COMMIT, BEGIN, READ = "Commit", "BeginTransaction", "BatchGetDocuments"


async def calls_of(source: Path, emulator: str) -> tuple[dict[str, int], dict[str, int]]:
    """Firestore's calls for a first delivery and for a duplicate.

    The process has handled an event before: what it does once is not counted.
    """
    async with counting(emulator) as calls, httpx.AsyncClient(timeout=30) as client:
        settings = {
            "FIRESTORE_EMULATOR_HOST": calls.address,
            "GOOGLE_CLOUD_PROJECT": f"cost-{uuid.uuid4().hex[:8]}",
        }
        with simulator() as svix_url, function(source, svix_url, settings) as started:
            counted = []
            for number in (1, 2, 2):
                answer = await client.post(started.notifications, json=push(number))
                assert answer.status_code == 200, answer.text
                counted.append(calls.take())
    return counted[1], counted[2]


async def test_the_relay_writes_twice_and_reads_nothing(firestore_emulator: str) -> None:
    """A claim and its settlement; a duplicate is one refused claim and one look at why."""
    first, duplicate = await calls_of(RELAY, firestore_emulator)
    assert first == {COMMIT: 2}
    assert sum(duplicate.values()) <= 2


async def test_the_count_can_fail(firestore_emulator: str) -> None:
    """The function most people would write makes more, and reads."""
    first, duplicate = await calls_of(NAIVE, firestore_emulator)
    assert first[READ] == 1
    assert sum(first.values()) > 2
    assert sum(duplicate.values()) > 2
