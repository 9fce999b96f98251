"""A simulator of Svix: an HTTP server with Svix's rules, a rate limit, and faults on demand.

The tests, `make run` and the bench use it. The relay knows only its URL. It creates applications,
takes messages, and sends them to endpoints on loopback, signed and with Svix's retries. Where
Svix's documentation is silent, it does what Svix's open-source server does
(https://github.com/svix/svix-webhooks); `tests/svix` runs on both. `/control` is an API of its own:
it shows what the simulator holds, and changes limits and faults.
"""

import argparse
import asyncio
import signal
import sys
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Self

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from local.behaviour import Behaviour, Call, Fault
from local.svix import control
from local.svix.api import Api
from local.svix.dispatch import Dispatcher
from local.svix.gate import Gate
from local.svix.server import Server
from local.svix.store import Store, StoredMessage

TOKEN = "testsk_local"


class Simulator:
    """The server; an async context manager. `url` is the server URL for the SDK.

    `second_token` is another token of the same environment. `endpoint_for` is asked for each new
    application: it returns the URL of its first endpoint, or None.
    """

    def __init__(
        self,
        token: str = TOKEN,
        port: int = 0,
        *,
        second_token: str | None = None,
        endpoint_for: Callable[[str], str | None] = lambda _app: None,
        **behaviour: Any,
    ) -> None:
        self.token = token
        self.store = Store()
        self._gate = Gate({token, second_token or token}, Behaviour(**behaviour), self._now)
        self._endpoint_for = endpoint_for
        self._port = port
        self._server: Server | None = None
        self._dispatcher: Dispatcher | None = None

    async def __aenter__(self) -> Self:
        self._dispatcher = Dispatcher(self.store, lambda: self.behaviour, self._now)
        api = Api(self.store, self._gate, self._dispatcher, self._now, self._endpoint_for)
        app = Starlette(
            routes=[*api.routes(), *control.routes(self)],
            exception_handlers={HTTPException: _empty},
        )
        self._server = Server(app, self._port)
        await self.start_listening()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.clear_faults()
        await self._running.close()
        if self._dispatcher is not None:
            await self._dispatcher.close()

    @property
    def _running(self) -> Server:
        if self._server is None:
            raise RuntimeError("enter the simulator first")
        return self._server

    async def start_listening(self) -> None:
        """Listen, on the same port as before."""
        await self._running.start()

    async def stop_listening(self) -> None:
        """Refuse new connections, and reset the open ones."""
        await self._running.stop()

    @property
    def url(self) -> str:
        """The server URL for the SDK."""
        return f"http://127.0.0.1:{self._running.port}"

    @property
    def messages(self) -> list[StoredMessage]:
        """Every accepted message, in the order of acceptance."""
        return self.store.messages

    @property
    def calls(self) -> deque[Call]:
        """Every call to the API."""
        return self._gate.calls

    @property
    def behaviour(self) -> Behaviour:
        """How it behaves; may be changed or replaced while it runs."""
        return self._gate.behaviour

    @behaviour.setter
    def behaviour(self, behaviour: Behaviour) -> None:
        self._gate.behaviour = behaviour

    def inject(self, fault: Fault) -> None:
        """Add a fault."""
        self._gate.inject(fault)

    def clear_faults(self) -> None:
        """Remove all faults. Calls that hang are reset."""
        self._gate.clear_faults()

    def restart(self) -> None:
        """Forget the idempotency keys: the real Svix keeps them in memory only."""
        self._gate.forget_keys()

    def reset(self) -> None:
        """Forget everything: the store, calls, keys, faults, and webhooks under way."""
        self.clear_faults()
        self.restart()
        self.calls.clear()
        self.store.clear()
        if self._dispatcher is not None:
            self._dispatcher.forget()

    def _now(self) -> datetime:
        return datetime.now(UTC) + self.behaviour.clock_offset


async def _empty(_request: Request, error: Exception) -> Response:
    """The answer for an unknown path or method: a status without a body."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered only for HTTPException
    return Response(status_code=error.status_code, headers=error.headers)


async def _serve(arguments: argparse.Namespace) -> None:
    simulator = Simulator(
        token=arguments.token,
        port=arguments.port,
        second_token=arguments.second_token,
        kind=arguments.kind,
        latency=arguments.latency_ms / 1000,
        rate=arguments.rate,
        burst=arguments.burst,
        retry_after=arguments.retry_after,
    )
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with simulator:
        print(f"Svix simulator on {simulator.url}", flush=True)
        await stopped.wait()


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m local.simulator", description=__doc__)
    parser.add_argument(
        "--port", type=int, default=8071, help="0: any free port (default: %(default)s)"
    )
    parser.add_argument("--token", default=TOKEN, help="(default: %(default)s)")
    parser.add_argument("--second-token", help="another token of the same environment")
    parser.add_argument("--kind", choices=["hosted", "open_source"], default="hosted")
    parser.add_argument("--latency-ms", type=float, default=0, help="delay of each answer")
    parser.add_argument("--rate", type=float, help="calls a second (default: no limit)")
    parser.add_argument("--burst", type=float, default=50, help="(default: %(default)g)")
    parser.add_argument("--retry-after", help="a 429's header: seconds, date, or any text")
    arguments = parser.parse_args(argv)
    try:
        asyncio.run(_serve(arguments))
    except OSError as failure:
        print(f"Can't listen on port {arguments.port}: {failure}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
