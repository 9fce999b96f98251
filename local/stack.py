"""The local stack: a topic with its push subscription, the function, Svix, a customer's endpoints.

It stands in for Google Cloud around the function. As on Cloud Run, the function has one address and
several instances, each a process of its own, and a new instance replaces one that dies. `make run`
starts the stack, and the page of `make run` shows it.
"""

import asyncio
import contextlib
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import PyreqwestError

from local.behaviour import Behaviour
from local.endpoints import Endpoints
from local.messages import Message, Push
from local.processes import Server, free_port, listening, running
from local.push import Policy, Subscription
from local.simulator import TOKEN, Simulator

ROOT = Path(__file__).parent.parent
ACK_DEADLINE = 300.0
"""Seconds after which an unanswered push counts as a nack, as `deploy.sh` sets it."""
POLICY = Policy(
    min_window=1000,
    initial_window=1000,
    max_pause=10,
    min_retry_delay=2,
    max_retry_delay=20,
    dead_letter_after=20,
)
"""A subscription that was busy before. Its times are shorter than Google's and `deploy.sh`'s (60,
10 and 600 s, 100 attempts), because a person is watching. Its `min_window` is a third of
Google's."""
_START_PATIENCE = 10.0  # seconds that Cloud Run holds a request while an instance starts
_OPEN_FILES = 20_000  # each outstanding push is a connection
_KEEP_ALIVE = timedelta(seconds=1)
"""Shorter than the 2 or 5 s for which a function keeps an idle connection. If the function closed a
connection just as a push is sent on it, the push would be a nack."""
_LOG_INTERVAL = 0.2  # seconds between two looks at an instance's log


@dataclass(frozen=True, slots=True)
class Program:
    """A function that the stack can run: its source, and the setting that names its ledger."""

    source: Path
    setting: str
    value: str

    def environment(self, ledger: Path) -> dict[str, str]:
        """The settings that differ between the programs."""
        return {self.setting: self.value.format(ledger)}


class State(StrEnum):
    """What an instance is doing."""

    STARTING = "starting"
    UP = "up"
    FROZEN = "frozen"
    ENDING = "ending"
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class Instance:
    """One process of the function. `outstanding` counts the pushes that it has not answered."""

    number: int
    port: int
    state: State = State.STARTING
    outstanding: int = 0
    server: Server | None = None
    processes: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def is_running(self) -> bool:
        """Whether it gets pushes. Pub/Sub can't tell a frozen instance from a slow one."""
        return self.state in {State.UP, State.FROZEN}


class Stack:
    """One function and everything around it; an async context manager.

    `port` and `simulator_port` are the ports of the function and of Svix (0: any free port).
    `behaviour` is how Svix behaves at first. `observe` is called with each line of an instance's
    log. Raises `ServerFailed` if the function does not start.
    """

    def __init__(
        self,
        program: Program,
        directory: Path,
        *,
        port: int = 0,
        simulator_port: int = 0,
        instances: int = 1,
        policy: Policy = POLICY,
        behaviour: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        observe: Callable[[Instance, bytes], None] = lambda _instance, _line: None,
    ) -> None:
        self.program = program
        self.ledger = directory / "ledger.db"
        self.policy = policy
        self.instances: list[Instance] = []
        self.messages: list[Message] = []
        self.answered: list[tuple[Message, Push]] = []
        """Every answered push, in the order of the answers."""
        self.observe = observe
        self.endpoints = Endpoints()
        self.simulator = Simulator(
            port=simulator_port,
            endpoint_for=lambda app: f"{self.endpoints.url}/{app}",
            **(behaviour or {}),
        )
        self.subscription = Subscription(self._push, policy)
        self._behaviour = dict(behaviour or {})
        self._environment = dict(environment or {})
        self._port = port
        self._initial_instances = self._wanted = instances
        self._starting = asyncio.Lock()
        self._is_svix_up = True
        self._numbers = 0
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[object]] = set()
        self._pushing: asyncio.Task[None] | None = None
        self._exits = contextlib.AsyncExitStack()
        self._client: Client | None = None

    async def __aenter__(self) -> Self:
        _allow_open_files()
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self.endpoints)
            await stack.enter_async_context(self.simulator)
            self._client = await stack.enter_async_context(
                ClientBuilder()
                .no_proxy()
                .timeout(timedelta(seconds=ACK_DEADLINE))
                .pool_idle_timeout(_KEEP_ALIVE)
                .build()
            )
            listener = await asyncio.start_server(self._forward, "127.0.0.1", self._port)
            self._port = listener.sockets[0].getsockname()[1]
            stack.callback(listener.close)
            stack.push_async_callback(self._stop)
            await self._start()
            self._exits = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exits.aclose()

    @property
    def url(self) -> str:
        """The function's address. It stays the same when the instances change."""
        return f"http://127.0.0.1:{self._port}"

    # -- actions

    def publish(
        self, data: bytes, project: str | None = None, event_id: str | None = None
    ) -> Message:
        """Publish one message."""
        message = Message(len(self.messages), data, project, event_id)
        self.messages.append(message)
        self.subscription.publish(message.number)
        return message

    async def restart(self, emptied: Callable[[], None] = lambda: None) -> None:
        """Start over: no messages, an empty ledger, an empty Svix, as many instances as at first.

        `emptied` is called when everything is empty. From then on messages may be published.
        """
        async with self._starting:
            await self._stop()
            for file in self.ledger.parent.glob(f"{self.ledger.name}*"):
                file.unlink()
            self.simulator.reset()
            self.simulator.behaviour = Behaviour(**self._behaviour)
            self.endpoints.answer = HTTPStatus.NO_CONTENT
            self.endpoints.answers.clear()
            self.endpoints.received = []
            await self.start_svix()
            self.messages, self.answered = [], []
            self.subscription = Subscription(self._push, self.policy)
            self._numbers = 0
            self._wanted = self._initial_instances
            emptied()
        await self._start()

    async def stop_svix(self) -> None:
        """Let Svix refuse connections."""
        if self._is_svix_up:
            self._is_svix_up = False
            await self.simulator.stop_listening()

    async def start_svix(self) -> None:
        """Let Svix accept connections again."""
        if not self._is_svix_up:
            self._is_svix_up = True
            await self.simulator.start_listening()

    async def kill(self, instance: Instance) -> None:
        """Kill an instance (SIGKILL), and start another one in its place."""
        instance.state = State.ENDED
        if instance.server is not None:
            instance.server.send_signal(signal.SIGKILL)
        await self._end(instance)
        await self._reach_wanted()

    def freeze(self, instance: Instance, seconds: float) -> None:
        """Stop the process (SIGSTOP) and let it go on after `seconds` (SIGCONT)."""

        async def thaw() -> None:
            await asyncio.sleep(seconds)
            if instance.state is State.FROZEN and instance.server is not None:
                instance.server.send_signal(signal.SIGCONT)
                instance.state = State.UP

        if instance.state is State.UP and instance.server is not None:
            instance.server.send_signal(signal.SIGSTOP)
            instance.state = State.FROZEN
            self._spawn(thaw())

    async def scale(self, count: int) -> None:
        """Run `count` instances. Surplus ones are ended with SIGTERM."""
        self._wanted = count
        running = [instance for instance in self.instances if instance.is_running]
        await asyncio.gather(self._reach_wanted(), *map(self._terminate, running[count:]))

    async def deploy(self) -> None:
        """Start new instances, send all further pushes to them, and end the old ones (SIGTERM)."""
        old = [instance for instance in self.instances if instance.is_running]
        async with self._starting:
            await self._add(self._wanted)
        await asyncio.gather(*map(self._terminate, old))

    # -- instances

    async def _start(self) -> None:
        await self._reach_wanted()
        self._pushing = asyncio.create_task(self.subscription.run([], until_done=False))

    async def _stop(self) -> None:
        """End the pushes and kill all processes."""
        for task in filter(None, (self._pushing, *self._tasks)):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for instance in self.instances:
            if instance.server is not None:
                instance.server.send_signal(signal.SIGKILL)
        await asyncio.gather(*map(self._end, [*self.instances]))

    async def _reach_wanted(self) -> None:
        async with self._starting:
            missing = self._wanted - sum(instance.is_running for instance in self.instances)
            await self._add(missing)

    async def _add(self, count: int) -> None:
        """Start `count` instances at the same time. Raises the first failure."""
        started = await asyncio.gather(
            *(self._start_one() for _ in range(count)), return_exceptions=True
        )
        for failure in started:
            if isinstance(failure, BaseException):
                raise failure

    async def _start_one(self) -> None:
        self._numbers += 1
        instance = Instance(self._numbers, free_port())
        self.instances.append(instance)
        running = asyncio.ensure_future(asyncio.to_thread(self._run, instance))
        try:
            instance.server = await asyncio.shield(running)
        except BaseException:
            await asyncio.wait([running])  # the process may still start, and must then be ended
            await self._end(instance)
            raise
        instance.state = State.UP
        self._spawn(self._read_log(instance, instance.server))
        self._notify()

    def _run(self, instance: Instance) -> Server:
        command = [sys.executable, "-m", "functions_framework", "--target", "notifications"]
        command += ["--source", str(self.program.source)]
        command += ["--host", "127.0.0.1", "--port", str(instance.port)]
        environment = {
            "SVIX_TOKEN": TOKEN,
            "SVIX_SERVER_URL": self.simulator.url,
            "LOG_LEVEL": "DEBUG",
            **self.program.environment(self.ledger),
            **self._environment,
        }
        ready = listening(instance.port)
        return instance.processes.enter_context(
            running(command, ready=ready, env=environment, cwd=ROOT)
        )

    async def _terminate(self, instance: Instance) -> None:
        instance.state = State.ENDING
        await self._end(instance)

    async def _end(self, instance: Instance) -> None:
        """Stop the instance's process, with SIGTERM if it still runs."""
        await asyncio.to_thread(instance.processes.close)
        instance.state = State.ENDED
        with contextlib.suppress(ValueError):
            self.instances.remove(instance)

    async def _read_log(self, instance: Instance, server: Server) -> None:
        """Pass each line of the instance's log to `observe`, down to the last.

        The file stays open here, because it is deleted when the instance ends.
        """
        rest = b""
        with server.log.open("rb") as log:
            while True:
                was_ended = instance.state is State.ENDED
                if instance.is_running and server.process.poll() is not None:
                    self._spawn(self.kill(instance))  # the process has ended by itself
                *lines, rest = (rest + log.read()).split(b"\n")
                for line in lines:
                    self.observe(instance, line)
                if was_ended:
                    return
                await asyncio.sleep(_LOG_INTERVAL)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _notify(self) -> None:
        """Wake those who wait for an instance."""
        self._changed.set()
        self._changed = asyncio.Event()

    # -- pushes

    async def _choose(self) -> Instance | None:
        """The instance with the fewest outstanding pushes. Like Cloud Run, waits for one to start.

        None if none has started in time.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START_PATIENCE):
                while not (running := [i for i in self.instances if i.is_running]):
                    await self._changed.wait()
                return min(running, key=lambda instance: instance.outstanding)
        return None

    async def _push(self, number: int) -> bool:
        message = self.messages[number]
        instance = await self._choose()
        push = Push(instance.number if instance else None, time.time())
        message.pushes.append(push)
        if instance is None:
            push.status = HTTPStatus.SERVICE_UNAVAILABLE
        else:
            instance.outstanding += 1
            try:
                push.status = await self._post(instance, message.body())
            finally:
                instance.outstanding -= 1
        push.answered_at = time.time()
        self.answered.append((message, push))
        nacks = sum(not push.is_ack for push in message.pushes)
        message.is_dead_letter = not push.is_ack and nacks == self.policy.dead_letter_after
        return push.is_ack

    async def _post(self, instance: Instance, body: bytes) -> int | None:
        assert self._client is not None  # noqa: S101 - it is entered first
        url = f"http://127.0.0.1:{instance.port}/notifications"
        headers = {"Content-Type": "application/json", "User-Agent": "APIs-Google; local"}
        try:
            answer = await self._client.post(url).headers(headers).body_bytes(body).build().send()
        except PyreqwestError:
            return None
        return answer.status

    # -- the function's one address

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one connection to an instance, like Cloud Run's front end."""
        with contextlib.closing(writer), contextlib.suppress(OSError):
            instance = await self._choose()
            if instance is None:
                return
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", instance.port)
            with contextlib.closing(up_writer):
                pumps = [_pump(reader, up_writer), _pump(up_reader, writer)]
                await _first_of(pumps)


def _allow_open_files() -> None:
    """Raise this process's and its children's limit on open files, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


async def _first_of(work: Iterable[Any]) -> None:
    """Wait until one of them ends, and cancel the others."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
