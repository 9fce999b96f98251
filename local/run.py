"""`make run`: run the relay on this machine, send it sample events, and print what became of them.

Starts the Svix simulator, the customers' endpoints, and the function with the SQLite ledger.
Prints the answer to each event and what reached the customers. Then it stays up. It serves a page
on which you can watch the relay and break it, and prints the settings for the operator's commands.
One event is parked and one customer's endpoint fails, so that these commands have something to
show.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from pathlib import Path

import uvloop

from local import demonstration, real
from local.page.app import serving
from local.page.lane import OBVIOUS, RELAY, Lane
from local.processes import ServerFailed, listening
from local.simulator import TOKEN
from local.stack import Stack
from local.stream import Stream
from local.tenants import Address, Tenants

_FAILING = "stellar-esim"  # whose endpoint answers 500


async def demonstrate(stack: Stack) -> bool:
    """Post the sample events, print the results, and return whether all are as expected."""
    events = demonstration.sample_events(str)
    projects = sorted({event["project"] for event in events.values()})
    stack.endpoints.answers[f"/{_FAILING}"] = 500
    requests = demonstration.posts(events, with_faults=True)
    as_expected = await demonstration.demonstrate(stack.url, requests, stack.simulator.inject)
    expected = {(event["project"], event["id"]) for event in events.values()}
    expected.add((projects[0], demonstration.LATE))
    async with Tenants(Address(stack.simulator.url, TOKEN)) as tenants:
        as_expected &= await demonstration.show_messages(tenants, expected)
    counts = {p: sum(project == p for project, _ in expected) for p in projects if p != _FAILING}
    as_expected &= await show_arrivals(stack, counts)
    print(
        f"The endpoint /{_FAILING} answers 500, so Svix tries again (here for a minute, not a day)."
    )
    return as_expected


async def show_arrivals(stack: Stack, counts: dict[str, int]) -> bool:
    """Print what reached each project's endpoint. Returns whether each arrived once, signed.

    `counts` holds the number of messages of each project.
    """
    as_expected = True
    async with Tenants(Address(stack.simulator.url, TOKEN)) as tenants:
        for project, count in counts.items():
            path = f"/{project}"
            secret = await tenants.secret(project, f"{stack.endpoints.url}{path}")
            as_expected &= await demonstration.show_arrivals(stack.endpoints, path, secret, count)
    return as_expected


def show_what_can_be_tried(stack: Stack, page: str) -> None:
    """Print what to look at and what to type next."""
    settings = f"SVIX_TOKEN={TOKEN} SVIX_SERVER_URL={stack.simulator.url}"
    events = demonstration.sample_events(str).values()
    event_id = next(event["id"] for event in events if event["project"] == _FAILING)
    print(f"""
Watch the relay and break it on this page:

  {page}

The function is on {stack.url}, the Svix simulator on {stack.simulator.url}.

To post an event yourself:

  curl {stack.url}/notifications -H 'Content-Type: application/json' \\
    -d '{{"id":"evt_mine","type":"user.created","project":"acme-mobile","data":{{"id":"usr_1"}}}}'

What Svix holds:    curl {stack.simulator.url}/control/messages""")
    demonstration.show_commands(f"{settings} LEDGER=sqlite:{stack.ledger}", _FAILING, event_id)


async def stay_up() -> None:
    """Wait for Ctrl-C or SIGTERM."""
    print("Ctrl-C stops everything.", flush=True)
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()
    print("\nStopping.")


async def run(arguments: argparse.Namespace) -> int:
    """Start everything, run the demonstration, and stay up unless `--once` is given."""
    if arguments.svix:
        return await real.run(arguments.port, once=arguments.once, stay_up=stay_up)
    async with contextlib.AsyncExitStack() as exits:
        directory = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="relay-")))
        print("Starting the function ...", flush=True)
        ports = {"port": arguments.port, "simulator_port": arguments.simulator_port}
        instances = 1 if arguments.once else 2
        relay = Lane.of(RELAY, directory / "relay", instances=instances, **ports)
        await exits.enter_async_context(relay)
        as_expected = await demonstrate(relay.stack)
        if arguments.rate or arguments.outage:
            stream = Stream(relay, arguments.rate, outage=arguments.outage)
            as_expected &= await stream.run()
            as_expected &= await show_arrivals(relay.stack, stream.projects)
        demonstration.show_conclusion(as_expected=as_expected)
        if arguments.once:
            return 0 if as_expected else 1
        obvious = Lane.of(OBVIOUS, directory / "obvious", instances=instances)
        await exits.enter_async_context(obvious)
        page = await exits.enter_async_context(serving([relay, obvious]))
        show_what_can_be_tried(relay.stack, page)
        await stay_up()
        return 0


def check_free(port: int, option: str) -> None:
    """Exit with a message if another program listens on the port."""
    if listening(port)():
        sys.exit(f"Port {port} is taken: stop what listens there, or choose another with {option}.")


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make run ARGS=...", description=__doc__)
    add = parser.add_argument
    add("--once", action="store_true", help="exit at the end, with 0 if all is as expected")
    add("--rate", type=float, help="then send a stream of events; Svix takes RATE calls a second")
    add("--outage", action="store_true", help="then send a stream of events; Svix has an outage")
    add("--svix", action="store_true", help="use the Svix of SVIX_TOKEN, not the simulator")
    add("--port", type=int, default=8080, help="the function's port (default: %(default)s)")
    add("--simulator-port", type=int, default=8071, help="Svix's port (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.svix and (arguments.rate or arguments.outage):
        parser.error("--rate and --outage are for the simulator: leave out --svix")
    if arguments.svix and not os.environ.get("SVIX_TOKEN"):
        parser.error(
            "--svix needs SVIX_TOKEN, a token of a test environment. A Svix of your own also needs "
            "SVIX_SERVER_URL."
        )
    check_free(arguments.port, "ARGS=--port=8090")
    if not arguments.svix:
        check_free(arguments.simulator_port, "ARGS=--simulator-port=8091")
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(run(arguments))
    except ServerFailed as failure:
        print(f"The function did not start.\n{failure}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
