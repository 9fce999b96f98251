"""Servers as child processes: started, awaited until they are ready, and stopped with certainty.

The one way here to start a process that is meant to stay: for tests, `make run` and the bench.
Plain context managers, so that they work with and without an event loop. What a server does is
not known here.
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
    """A port of the loopback that is free at this moment.

    It is below those that systems give to outgoing connections (Linux: from 32768 on), so that
    none of those takes it before the server does; and any of 12,000, so that hardly anybody who
    calls this at the same moment gets the same.
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
    """`command`, so that SIGINT and SIGQUIT end what it starts.

    A shell without job control ignores both in what it starts with `&`, and so does every
    descendant that doesn't set them itself. Then the command goes through a Python that restores
    them and becomes the command: `preexec_fn` is not safe where threads run.
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

    `ready` is a pattern that a line of its output matches, or a probe that turns true. `env` is
    put over this process's own environment. `limit` and `grace` are the seconds it may take to
    come up and to end. Raises `ServerFailed` where it ends early or is not ready in time.
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
