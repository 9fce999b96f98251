"""A memory limit that the kernel enforces, on machines that allow Linux control groups.

Source: https://docs.kernel.org/admin-guide/cgroup-v1/memory.html and
https://docs.kernel.org/admin-guide/cgroup-v2.html
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Group:
    """A control group with a memory limit. If its processes exceed that, the kernel kills some."""

    path: Path
    _peak: str

    def started_in(self, command: Sequence[str]) -> list[str]:
        """The command that runs `command`, and all that it starts, in this group."""
        enter = 'echo $$ > "$0" && exec "$@"'
        return ["/bin/sh", "-c", enter, str(self.path / "cgroup.procs"), *command]

    def peak_megabytes(self) -> float:
        """The most memory that was charged to it, in MB."""
        return int((self.path / self._peak).read_text()) / 2**20


@contextlib.contextmanager
def limited(megabytes: int) -> Iterator[Group | None]:
    """A group with this limit; None if the machine allows no group.

    The group's processes must end before the block does.
    """
    name = f"relay-bench-{os.getpid()}"
    versions = (
        (_ROOT / "memory" / name, "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
        (_ROOT / name, "memory.max", "memory.peak"),
    )
    for path, limit, peak in versions:
        try:
            path.mkdir()
        except OSError:
            continue
        try:
            (path / limit).write_text(str(megabytes * 2**20))
            usable = (path / peak).exists()
        except OSError:
            usable = False
        try:
            if usable:
                yield Group(path, peak)
                return
        finally:
            path.rmdir()
    yield None
