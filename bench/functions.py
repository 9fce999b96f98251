"""What the benches on real processes use: a function as Cloud Run serves it, and a Svix simulator.

A function is two processes: the functions framework's server, and its worker.
"""

import base64
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.cgroup import Group
from local.processes import Server, free_port, listening, running

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
RELAY, NAIVE = ROOT / "main.py", ROOT / "bench" / "naive.py"
TOKEN = "testsk_bench"
PROJECTS = 20
"""The number of projects to which the events belong."""


@dataclass(frozen=True, slots=True)
class Function:
    """A running function: the server's master and its worker."""

    url: str
    server: Server

    @property
    def notifications(self) -> str:
        """The URL for events."""
        return f"{self.url}/notifications"

    def processes(self) -> list[psutil.Process]:
        """The function's processes, the master first."""
        master = psutil.Process(self.server.pid)
        return [master, *master.children(recursive=True)]

    def processor_seconds(self) -> float:
        """The processor time of all processes so far, in user and in system mode."""
        spent = (process.cpu_times() for process in self.processes())
        return sum(times.user + times.system for times in spent)

    def resident_megabytes(self) -> float:
        """The memory of all processes. A page that they share counts in each of them (RSS)."""
        return sum(process.memory_info().rss for process in self.processes()) / 2**20

    def megabytes(self) -> float:
        """The memory of all processes. A page that they share counts once (PSS), if known."""
        infos = (process.memory_full_info() for process in self.processes())
        return sum(getattr(info, "pss", info.rss) for info in infos) / 2**20


@contextlib.contextmanager
def function(
    source: Path,
    svix_url: str,
    environment: Mapping[str, str],
    ready: Callable[[str], bool] | None = None,
    group: Group | None = None,
) -> Iterator[Function]:
    """Start a function. `group` limits the memory of all its processes.

    `ready` gets the function's URL and says whether the function is ready. By default it is ready
    when it listens.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "functions_framework", "--target", "notifications"]
    command += ["--source", str(source), "--host", "127.0.0.1", "--port", str(port)]
    if group is not None:
        command = group.started_in(command)
    settings = {
        "SVIX_TOKEN": TOKEN,
        "SVIX_SERVER_URL": svix_url,
        "LOG_LEVEL": "CRITICAL",
        **environment,
    }
    probe = listening(port) if ready is None else lambda: ready(url)
    with running(command, ready=probe, env=settings, cwd=ROOT) as server:
        yield Function(url, server)


@contextlib.contextmanager
def simulator(*arguments: str) -> Iterator[str]:
    """Start the Svix simulator with these command-line arguments. Yields its URL."""
    command = [sys.executable, "-m", "local.simulator", "--port", "0", "--token", TOKEN]
    with running([*command, *arguments], ready="Svix simulator on", cwd=ROOT) as server:
        yield server.ready_line.split()[-1]


def push(number: int, run: str = "", project: str | None = None) -> dict[str, object]:
    """A wrapped push of the event with this number. Each `run` has events of its own.

    Without `project`, the events belong to 20 projects in turn.
    """
    event = {
        "id": f"evt_{run}{number}",
        "type": "user.created",
        "project": project or f"project_{number % PROJECTS}",
        "data": {"id": f"sim_{number}"},
    }
    data = base64.b64encode(json.dumps(event).encode()).decode()
    return {"message": {"data": data, "messageId": f"{run}{number}"}, "subscription": "s"}
