"""Servers as child processes: started, awaited until they are ready, and stopped with certainty.

The one way here to start a process that is meant to stay: for tests, `make run` and the bench.
Plain context managers, so that they work with and without an event loop. What a server does is
not known here.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_POLL_SECONDS = 0.02
_LAST_WORDS = 2_000  # characters of output in an error: a stack trace's worth


class ServerFailed(Exception):
    """A server did not come up; its text has the command and its last output."""


@dataclass(slots=True)
class Server:
    """A running server. It leads a process group of its own, children included."""

    process: subprocess.Popen[bytes]
    log: Path
    ready_line: str = field(default="", init=False)
    """The line of its output that said it was ready, where one was waited for."""

    @property
    def pid(self) -> int:
        """The process id, which is the group's too."""
        return self.process.pid

    def output(self) -> str:
        """All it has written to stdout and stderr so far."""
        return self.log.read_text(errors="replace")

    def send_signal(self, number: signal.Signals) -> None:
        """Signal the server and its children; none if it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def stop(self, grace: float = 10.0) -> int:
        """Ask it to end, wait `grace` seconds, then kill; its exit code (negative: by a signal)."""
        if self.process.poll() is None:
            self.send_signal(signal.SIGTERM)
            self.send_signal(signal.SIGCONT)  # one that is suspended cannot end
        try:
            return self.process.wait(grace)
        except subprocess.TimeoutExpired:
            return self.kill()
        finally:
            self.send_signal(signal.SIGKILL)  # children that outlive it

    def kill(self) -> int:
        """End it and its children without their having a say."""
        self.send_signal(signal.SIGKILL)
        return self.process.wait()


def listening(port: int, host: str = "127.0.0.1") -> Callable[[], bool]:
    """A probe for `running`: whether somebody accepts connections there."""

    def probe() -> bool:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
            return True
        return False

    return probe


def free_port() -> int:
    """A port of the loopback that is free at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def running(
    command: Sequence[str | Path],
    *,
    ready: str | Callable[[], bool],
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    limit: float = 30.0,
    grace: float = 10.0,
) -> Iterator[Server]:
    """Start a server, wait until it is ready, stop it at the end.

    `ready` is a pattern that a line of its output matches, or a probe that turns true. `env` is
    put over this process's own environment. `limit` and `grace` are the seconds it may take to
    come up and to end. Raises `ServerFailed` where it ends early or is not ready in time.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(tempfile.NamedTemporaryFile(prefix="server-", suffix=".log"))
        try:
            process = subprocess.Popen(  # noqa: S603 - our own commands, and no shell
                [*map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                start_new_session=True,
            )
        except OSError as failure:
            raise ServerFailed(f"{command[0]} could not be started: {failure}") from failure
        server = Server(process, Path(file.name))
        stack.callback(server.stop, grace)
        _await_ready(server, command, ready, limit)
        yield server


def _await_ready(
    server: Server, command: Sequence[str | Path], ready: str | Callable[[], bool], limit: float
) -> None:
    given_up_at = time.monotonic() + limit
    while True:
        # Before the look at its output: what it wrote last is then not missed.
        ended = server.process.poll() is not None
        if isinstance(ready, str):
            if match := re.search(f"^.*(?:{ready}).*\n", server.output(), re.MULTILINE):
                server.ready_line = match[0].strip()
                return
        elif not ended and ready():
            return
        if ended:
            fault = f"ended with exit code {server.process.returncode} before it was ready"
        elif time.monotonic() > given_up_at:
            fault = f"was not ready within {limit:g} s"
        else:
            time.sleep(_POLL_SECONDS)
            continue
        said = server.output()[-_LAST_WORDS:].strip() or "(nothing)"
        raise ServerFailed(f"{' '.join(map(str, command))}\n{fault}; it last said:\n{said}")
