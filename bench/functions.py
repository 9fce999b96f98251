"""What every bench measures: a function as Cloud Run serves it, with Svix beside it.

Real processes: the functions framework, whose group is the function, and the Svix simulator.
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
"""How many projects the events are of."""


@dataclass(frozen=True, slots=True)
class Function:
    """A running function: the server's master and its worker."""

    url: str
    server: Server

    @property
    def notifications(self) -> str:
        """Where events go."""
        return f"{self.url}/notifications"

    def processes(self) -> list[psutil.Process]:
        """The master first."""
        master = psutil.Process(self.server.pid)
        return [master, *master.children(recursive=True)]

    def processor_seconds(self) -> float:
        """What all of it has used so far, in user and in system mode."""
        spent = (process.cpu_times() for process in self.processes())
        return sum(times.user + times.system for times in spent)

    def resident_megabytes(self) -> float:
        """Memory, pages shared between its processes counted in each (RSS)."""
        return sum(process.memory_info().rss for process in self.processes()) / 2**20

    def megabytes(self) -> float:
        """Memory, pages shared between its processes counted once, where the system tells (PSS)."""
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
    """Start a function; `ready` is asked with its URL, and is else whether it listens.

    `group` limits the memory of all its processes.
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
    """The Svix simulator, with the arguments of its command line; its URL."""
    command = [sys.executable, "-m", "local.simulator", "--port", "0", "--token", TOKEN]
    with running([*command, *arguments], ready="Svix simulator on", cwd=ROOT) as server:
        yield server.ready_line.split()[-1]


def push(number: int, run: str = "", project: str | None = None) -> dict[str, object]:
    """A wrapped push of the event of this number; each `run` has events of its own.

    They are of 20 projects, unless one is named.
    """
    event = {
        "id": f"evt_{run}{number}",
        "type": "user.created",
        "project": project or f"project_{number % PROJECTS}",
        "data": {"id": f"sim_{number}"},
    }
    data = base64.b64encode(json.dumps(event).encode()).decode()
    return {"message": {"data": data, "messageId": f"{run}{number}"}, "subscription": "s"}
