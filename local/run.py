"""`make run`: the relay on this machine, sample events through it, and a table of what happened.

Starts the Svix simulator and the function with the embedded ledger, posts what is in `events/` in
all three bodies, a duplicate, what is no event, and one while Svix is refusing; then it stays up,
with a page on which to watch it and break it.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvloop

from local.conduct import Fault
from local.page.app import serving
from local.page.lane import OBVIOUS, RELAY, Lane
from local.processes import ServerFailed, listening
from local.simulator import Simulator
from local.stack import Stack

EVENTS = sorted((Path(__file__).parent / "events").glob("*.json"))
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class Post:
    """One request to the function, and what should come of it."""

    name: str
    form: str
    body: bytes
    headers: dict[str, str]
    expected: str
    refused: int = 0
    """How many times Svix answers 429 first."""


def bare(name: str, body: bytes, expected: str = "200 delivered", refused: int = 0) -> Post:
    """As posted by hand."""
    return Post(name, "by hand", body, JSON, expected, refused)


def wrapped(name: str, body: bytes, message_id: int, expected: str = "200 delivered") -> Post:
    """As Pub/Sub pushes by default."""
    message = {
        "data": base64.b64encode(body).decode(),
        "messageId": str(message_id),
        "publishTime": "2026-11-24T09:15:00Z",
    }
    push = {"message": message, "subscription": "projects/local/subscriptions/webhook-relay"}
    return Post(name, "push", json.dumps(push).encode(), JSON, expected)


def unwrapped(name: str, body: bytes, message_id: int) -> Post:
    """As Pub/Sub pushes with payload unwrapping and metadata."""
    headers = {"x-goog-pubsub-message-id": str(message_id)}
    return Post(name, "unwrapped push", body, headers, "200 delivered")


def posts() -> Iterator[Post]:
    """What is sent, in order."""
    bodies = {path.stem[3:]: path.read_bytes() for path in EVENTS}
    for number, (name, body) in enumerate(bodies.items()):
        match number % 3:
            case 0:
                yield bare(name, body)
            case 1:
                yield wrapped(name, body, 1000 + number)
            case _:
                yield unwrapped(name, body, 1000 + number)
    first = next(iter(bodies))
    yield bare(f"{first}, again", bodies[first], "200 duplicate")
    yield wrapped(f"{first}, published again", bodies[first], 1100, "200 duplicate")
    yield bare("no event", b'{"type": "user.created"}', "400 malformed")
    yield wrapped("no event", b'{"type": "user.created"}', 1101, "200 malformed")
    late = {"id": "evt_0Sx1late", "type": "user.updated", "project": "globex", "data": {}}
    yield bare("while Svix refuses", json.dumps(late).encode(), refused=2)


async def send(client: httpx.AsyncClient, simulator: Simulator, post: Post) -> str:
    """Post it; what came back, as `expected` says it."""
    if post.refused:
        retry = {"Retry-After": "1"}
        simulator.inject(Fault("status", status=429, headers=retry, times=post.refused))
    answer = await client.post("/notifications", content=post.body, headers=post.headers)
    outcome = answer.json().get("outcome", "(no outcome)")
    return f"{answer.status_code} {outcome}"


async def demonstrate(simulator: Simulator, url: str) -> bool:
    """Send everything, show what became of it; whether all came out as it should."""
    print(f"\n{'what':36} {'sent as':15} {'answered':16} svix holds\n{'-' * 80}")
    right = True
    async with httpx.AsyncClient(base_url=url, timeout=90) as client:
        for post in posts():
            answered = await send(client, simulator, post)
            mark = "" if answered == post.expected else f"  <- expected {post.expected}"
            right &= not mark
            print(f"{post.name:36} {post.form:15} {answered:16} {len(simulator.messages):3}{mark}")
    return right & show_messages(simulator, {json.loads(p.read_bytes())["id"] for p in EVENTS})


def show_messages(simulator: Simulator, sent: set[str]) -> bool:
    """What the simulator holds, by application; whether it is each event once."""
    held = Counter(str(message.event_id) for message in simulator.messages)
    applications = Counter(message.app for message in simulator.messages)
    print("\nSvix now holds " + ", ".join(f"{n} for {app}" for app, n in applications.items()))
    expected = Counter(dict.fromkeys(sent | {"evt_0Sx1late"}, 1))
    if held == expected:
        print(f"{len(expected)} events, each one message.")
        return True
    missing, doubled = expected - held, held - expected
    print(f"Missing: {sorted(missing) or 'none'}; too many: {sorted(doubled) or 'none'}")
    return False


async def stay_up(stack: Stack, address: str) -> None:
    """Say what one can do, until Ctrl-C."""
    print(f"""
The page, to watch it and break it:

  {address}

The function is on {stack.url}, the Svix simulator on {stack.simulator.url}. Send more:

  curl --data @local/events/01-user.created.json -H 'Content-Type: application/json' \\
    {stack.url}/notifications

What Svix holds:    curl {stack.simulator.url}/control/messages
Ctrl-C stops everything.""")
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()
    print("\nStopping.")


async def run(arguments: argparse.Namespace) -> int:
    """Start, demonstrate, and stay up unless told not to."""
    async with contextlib.AsyncExitStack() as exits:
        directory = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="relay-")))
        print("Starting the function ...", flush=True)
        ports = {"port": arguments.port, "simulator_port": arguments.simulator_port}
        instances = 1 if arguments.once else 2
        relay = Lane.of(RELAY, directory / "relay", instances=instances, **ports)
        await exits.enter_async_context(relay)
        right = await demonstrate(relay.stack.simulator, relay.stack.url)
        if arguments.once:
            print("All as it should be." if right else "Not all came out as it should.")
            return 0 if right else 1
        obvious = Lane.of(OBVIOUS, directory / "obvious", instances=instances)
        await exits.enter_async_context(obvious)
        address = await exits.enter_async_context(serving([relay, obvious]))
        await stay_up(relay.stack, address)
        return 0


def check_free(port: int, option: str) -> None:
    """Exit with a message where somebody is listening already."""
    if listening(port)():
        sys.exit(f"Port {port} is taken: stop what listens there, or choose another with {option}.")


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make run ARGS=...", description=__doc__)
    parser.add_argument(
        "--once", action="store_true", help="exit after the table: 0 if all is well"
    )
    parser.add_argument("--port", type=int, default=8080, help="the function's (%(default)s)")
    parser.add_argument("--simulator-port", type=int, default=8071, help="Svix's (%(default)s)")
    arguments = parser.parse_args(argv)
    check_free(arguments.port, "ARGS=--port=8090")
    check_free(arguments.simulator_port, "ARGS=--simulator-port=8091")
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(run(arguments))
    except ServerFailed as failure:
        print(f"The function did not start.\n{failure}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
