"""Starts servers as child processes, waits until they are ready, and always stops them.

The tests, `make run` and the bench start every long-lived process with `running`. It is a plain
context manager, so that it works with and without an event loop.
"""

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_POLL_SECONDS = 0.02
_LAST_WORDS = 2_000  # characters of output in an error message, enough for a stack trace


class ServerFailed(Exception):
    """A server did not become ready. The message has the command and the end of its output."""


@dataclass(slots=True)
class Server:
    """A running server. It leads its own process group, which includes its children."""

    process: subprocess.Popen[bytes]
    log: Path
    ready_line: str = field(default="", init=False)
    """The line of output that showed that it was ready; empty if a probe showed it."""

    @property
    def pid(self) -> int:
        """The process id, which is the group's too."""
        return self.process.pid

    def output(self) -> str:
        """All it has written to stdout and stderr so far."""
        return self.log.read_text(errors="replace")

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the server and its children. Does nothing if they are gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def stop(self, grace: float = 10.0) -> int:
        """Send SIGTERM, wait up to `grace` seconds, then kill it. Returns the exit code.

        The exit code is negative if a signal ended the server.
        """
        if self.process.poll() is None:
            self.send_signal(signal.SIGTERM)
            self.send_signal(signal.SIGCONT)  # a suspended process cannot handle SIGTERM
        try:
            return self.process.wait(grace)
        except subprocess.TimeoutExpired:
            return self.kill()
        finally:
            self.send_signal(signal.SIGKILL)  # for children that outlive it

    def kill(self) -> int:
        """Kill the server and its children (SIGKILL). Returns the exit code."""
        self.send_signal(signal.SIGKILL)
        return self.process.wait()


def listening(port: int, host: str = "127.0.0.1") -> Callable[[], bool]:
    """A probe for `running`: whether a server accepts connections on the port."""

    def probe() -> bool:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
            return True
        return False

    return probe


def free_port() -> int:
    """A port of the loopback interface that is free at this moment.

    The port is below the range that systems use for outgoing connections (Linux: from 32768 on).
    So no such connection takes it before the server does. It is one of 12,000, chosen at random. So
    two callers at the same moment hardly ever get the same port.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            return port


_RESTORE = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGQUIT):
    signal.signal(number, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def interruptible(command: Sequence[str | Path]) -> list[str]:
    """The command, changed if necessary so that SIGINT and SIGQUIT end its process.

    A shell without job control starts commands in the background (`&`) with both signals ignored,
    and child processes inherit that. In this case a small Python program restores the signals and
    executes the command. `preexec_fn` would not be safe, because this process may have threads.
    """
    words = [*map(str, command)]
    ignored = {signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGQUIT)}
    return [sys.executable, "-IS", "-c", _RESTORE, *words] if signal.SIG_IGN in ignored else words


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

    `ready` is a pattern for a line of its output, or a probe that returns whether it is ready.
    `env` is added to this process's environment. The server has `limit` seconds to become ready and
    `grace` seconds to end. Raises `ServerFailed` if it ends early or is not ready in time.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(tempfile.NamedTemporaryFile(prefix="server-", suffix=".log"))
        if shutil.which(command[0]) is None:
            raise ServerFailed(f"{command[0]} could not be started: there is no such program")
        process = subprocess.Popen(  # noqa: S603 - our own commands, and no shell
            interruptible(command),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            start_new_session=True,
        )
        server = Server(process, Path(file.name))
        stack.callback(server.stop, grace)
        _await_ready(server, command, ready, limit)
        yield server


def _await_ready(
    server: Server, command: Sequence[str | Path], ready: str | Callable[[], bool], limit: float
) -> None:
    given_up_at = time.monotonic() + limit
    while True:
        # This is checked before the output is read. Otherwise the server's last lines could be
        # missed.
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
