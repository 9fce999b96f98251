"""`make run ARGS=--svix`: the demonstration on a real Svix, in an application of its own.

The function runs here, with the SQLite ledger. SVIX_SERVER_URL and SVIX_TOKEN name the Svix. If
that Svix runs on this machine, it sends the webhooks to customers' endpoints here. Any other Svix
can't reach them; its portal shows the events, if it has one.
"""

import asyncio
import contextlib
import os
import secrets
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from local import demonstration
from local.endpoints import Endpoints
from local.processes import Server, listening, running
from local.stack import ROOT
from local.tenants import Address, Tenants

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_FAILING = "/failing"


@dataclass(frozen=True, slots=True)
class Trial:
    """One run on a real Svix."""

    url: str
    """The function's URL."""
    server: Server
    ledger: Path
    tenants: Tenants
    endpoints: Endpoints | None
    """None: Svix can't reach this machine."""
    application: str

    async def demonstrate(self) -> bool:
        """Post the sample events, print the results, and return whether all are as expected."""
        events = demonstration.sample_events(lambda _project: self.application)
        url = None
        if self.endpoints:
            url = f"{self.endpoints.url}/{self.application}"
            self.endpoints.answers[_FAILING] = 500
            await self.tenants.add(self.application)
            await self.tenants.add_endpoint(self.application, url)
            await self.tenants.add_endpoint(self.application, f"{self.endpoints.url}{_FAILING}")
        requests = demonstration.posts(events, with_faults=False)
        as_expected = await demonstration.demonstrate(self.url, requests)
        expected = {(self.application, str(event["id"])) for event in events.values()}
        as_expected &= await demonstration.show_messages(self.tenants, expected)
        if self.endpoints and url:
            secret = await self.tenants.secret(self.application, url)
            path = f"/{self.application}"
            arrived = await demonstration.show_arrivals(self.endpoints, path, secret, len(expected))
            if self.endpoints.received:
                as_expected &= arrived
                print(f"Its other endpoint, {_FAILING}, answers 500: Svix will try it again.")
            else:
                print(
                    "This Svix can't send to this machine: it runs in a container, or forbids "
                    "private addresses."
                )
        return as_expected

    async def show_what_can_be_tried(self) -> None:
        """Print what to look at and what to type next."""
        if link := await self.tenants.portal(self.application):
            print(f"\nWhat the customer sees, in Svix's own portal:\n\n  {link}")
        event_id = next(iter(demonstration.sample_events(str).values()))["id"]
        more = "also export this shell's SVIX_TOKEN and SVIX_SERVER_URL"
        settings = f"LEDGER=sqlite:{self.ledger}  # {more}"
        demonstration.show_commands(settings, self.application, event_id)
        print(f"The function's log: {self.server.log}")

    async def offer_removal(self) -> None:
        """Delete the application from Svix, unless a person at the terminal says no."""
        question = f"Remove the application {self.application} from Svix? [Y/n] "
        answer = await asyncio.to_thread(input, question) if sys.stdin.isatty() else ""
        if answer.strip().lower() in {"", "y", "yes"}:
            await self.tenants.remove(self.application)
            print(f"Removed {self.application}.")
        else:
            print(f"Kept {self.application}.")


async def run(port: int, *, once: bool, stay_up: Callable[[], Awaitable[None]]) -> int:
    """Start the function, run the demonstration, stay up unless `once`, and clean up.

    Returns the exit code.
    """
    async with _started(port) as trial:
        as_expected = await trial.demonstrate()
        if once:
            demonstration.show_conclusion(as_expected=as_expected)
        else:
            await trial.show_what_can_be_tried()
            await stay_up()
        await trial.offer_removal()
        return 0 if as_expected else 1


@contextlib.asynccontextmanager
async def _started(port: int) -> AsyncIterator[Trial]:
    address = Address(os.environ.get("SVIX_SERVER_URL"), os.environ["SVIX_TOKEN"])
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-")))
        endpoints = None
        if urlsplit(address.url or "").hostname in _LOOPBACK:
            endpoints = await stack.enter_async_context(Endpoints())
        tenants = await stack.enter_async_context(Tenants(address))
        print("Starting the function ...", flush=True)
        ledger = directory / "ledger.db"
        server = stack.enter_context(_function(port, ledger))
        application = f"webhook-relay-run-{secrets.token_hex(4)}"
        url = f"http://127.0.0.1:{port}"
        yield Trial(url, server, ledger, tenants, endpoints, application)


@contextlib.contextmanager
def _function(port: int, ledger: Path) -> Iterator[Server]:
    """Run the function. It inherits SVIX_TOKEN and SVIX_SERVER_URL from the environment."""
    command = [sys.executable, "-m", "functions_framework", "--target", "notifications"]
    command += ["--source", str(ROOT / "main.py"), "--host", "127.0.0.1", "--port", str(port)]
    environment = {"LEDGER": f"sqlite:{ledger}"}
    with running(command, ready=listening(port), env=environment, cwd=ROOT) as server:
        yield server
