"""deploy.sh with a stand-in for gcloud that records its arguments."""

import os
import subprocess
from pathlib import Path
from typing import Any

from tests.function import ROOT, TOKEN

STAND_IN = Path(__file__).parent / "gcloud-stand-in.sh"

Run = subprocess.CompletedProcess[str]


class Script:
    """deploy.sh with the stand-in."""

    def __init__(self, folder: Path) -> None:
        self.calls_file = folder / "calls"
        self.path = folder / "bin"
        self.path.mkdir()
        (self.path / "gcloud").symlink_to(STAND_IN)

    def __call__(
        self, *options: str, fail_at: str = "", looks: dict[str, str] | None = None
    ) -> Run:
        """Run deploy.sh for a project that has only what `looks` says.

        `looks` has the output of gcloud commands that read, by their first words.
        """
        for leftover in self.calls_file.parent.glob("calls*"):
            leftover.unlink()
        environment = {
            "PATH": f"{self.path}:{os.environ['PATH']}",
            "CALLS": str(self.calls_file),
            "FAIL_AT": fail_at,
            "LOOKS": "\n".join(f"{look} => {found}" for look, found in (looks or {}).items()),
        }
        ended = subprocess.run(  # noqa: S603 - our own command
            [ROOT / "deploy.sh", *options],
            env=os.environ | environment,
            input=f"{TOKEN}\n",
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert TOKEN not in ended.stdout + ended.stderr + " ".join(map(str, self.calls()))
        return ended

    def deploy(self, *options: str, **more: Any) -> Run:
        """Run a whole deployment, with a token."""
        where = ("--project", "acme-relay", "--region", "europe-west1", "--token-stdin")
        return self(*where, *options, **more)

    def calls(self, *beginning: str) -> list[list[str]]:
        """The arguments of the calls of gcloud that begin with these."""
        if not self.calls_file.exists():
            return []
        calls = [call.split("\x1f")[:-1] for call in self.calls_file.read_text().split("\x1e")]
        return [call for call in calls[:-1] if tuple(call[: len(beginning)]) == beginning]
