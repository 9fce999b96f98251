"""200,000 events through one process must not leak memory or connections, or slow it down."""

import os

import pytest

from bench import soak

pytestmark = [
    pytest.mark.skipif(os.environ.get("SOAK") != "1", reason="long: `make soak` runs it"),
    pytest.mark.time_limit(7_200),
]


async def test_the_last_events_cost_what_the_first_did(
    firestore_emulator: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last tenth is compared with the second tenth: memory, processor time, connections."""

    def say(words: str) -> None:
        with capsys.disabled():
            print(words, flush=True)  # noqa: T201 - the run takes a quarter of an hour

    say(f"\n{soak.HEADER}")
    tenths = await soak.run(firestore_emulator, say=say)
    second, last = tenths[1], tenths[-1]
    assert last.megabytes <= 1.05 * second.megabytes
    # The number of idle connections may differ, because keep-alive may have closed some.
    assert last.descriptors <= second.descriptors + soak.IN_FLIGHT
    assert last.connections <= second.connections + soak.IN_FLIGHT
    assert last.tasks <= second.tasks
    assert last.objects <= 1.02 * second.objects
    assert last.ms <= 1.15 * second.ms  # processor time varies with the machine's load
