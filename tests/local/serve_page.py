"""Serves the page like `make run`, for its tests.

With SOAK=1 its stories have their full length. Otherwise they are short.
"""

import asyncio
import contextlib
import os
import signal
import tempfile
from dataclasses import replace
from pathlib import Path

import uvloop

from local.page.app import serving
from local.page.lane import OBVIOUS, RELAY, Lane

SHORT = 0.15  # the scale of the short stories
SHORT_LEASE = replace(RELAY.program, source=Path(__file__).parent / "short_lease.py")


async def serve() -> None:
    """Print the address, and wait for SIGTERM."""
    is_full = os.environ.get("SOAK") == "1"
    relay = RELAY if is_full else replace(RELAY, program=SHORT_LEASE)
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        lanes = [Lane.of(kind, directory / kind.name, instances=2) for kind in (relay, OBVIOUS)]
        await asyncio.gather(*map(stack.enter_async_context, lanes))
        address = await stack.enter_async_context(serving(lanes, scale=1 if is_full else SHORT))
        stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        print(f"The page: {address}", flush=True)  # noqa: T201 - the test waits for this line
        await stopped.wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
