"""What the commands share: running a command, exit statuses, options, progress.

0: all is well. 1: something is not sent. 2: wrong usage or settings. 3: the ledger or Svix did not
answer, or `check` found a fault. 130: interrupted.
"""

import asyncio
import contextlib
import functools
import json
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ParamSpec

import click

from relay.config import ConfigurationError, Settings
from relay.ledger import Archive, LedgerMisconfigured, LedgerUnavailable
from relay.operate.svix import Pace, SvixUnavailable, SvixView
from relay.worker import ledger_opener

OK, NOT_SENT, WRONG_USAGE, NO_ANSWER, INTERRUPTED = 0, 1, 2, 3, 130

PATIENCE = 300.0
"""Seconds for which a long command retries Svix, and the reads of single records. A deployment or a
failover takes less."""
SHORT_PATIENCE = 20.0
"""Seconds for which a short command retries Svix, because a person waits for its answer."""
CALLS_A_SECOND = 2.0
"""The default rate of a command that makes many calls to Svix. The function needs the rest of
Svix's limit."""
_FEW_CALLS_A_SECOND = 20.0
"""The rate of a command that makes few calls to Svix."""

_P = ParamSpec("_P")

as_json = click.option("--json", "as_json", is_flag=True, help="JSON, for scripts.")


@dataclass(frozen=True, slots=True)
class Tools:
    """The settings and the ledger of a running command."""

    settings: Settings
    archive: Archive

    def svix(
        self,
        *,
        rate: float = _FEW_CALLS_A_SECOND,
        patience: float = SHORT_PATIENCE,
        waiting: Callable[[str, float], None] = lambda _reason, _seconds: None,
    ) -> SvixView:
        """A view of Svix, which the caller must close."""
        token, url = self.settings.svix_token, self.settings.svix_server_url
        return SvixView(token, url, Pace(rate), patience, waiting)


@contextlib.asynccontextmanager
async def open_tools() -> AsyncIterator[Tools]:
    """The settings and the ledger. Raises `ConfigurationError` and `LedgerUnavailable`."""
    settings = Settings.from_environment(os.environ)
    archive = ledger_opener(settings, create=False)()
    try:
        yield Tools(settings, archive)
    finally:
        await archive.close()


def run(command: Callable[_P, Coroutine[Any, Any, int]]) -> Callable[_P, None]:
    """Run a command in an event loop of its own, and exit with its status."""

    @functools.wraps(command)
    def running(*arguments: _P.args, **options: _P.kwargs) -> None:
        try:
            status = asyncio.run(command(*arguments, **options))
        except ConfigurationError as fault:
            click.echo(str(fault), err=True)
            status = WRONG_USAGE
        except LedgerMisconfigured as fault:
            click.echo(f"The ledger can't be used: {fault}", err=True)
            status = WRONG_USAGE
        except LedgerUnavailable as failure:
            click.echo(f"The ledger did not answer: {failure}", err=True)
            status = NO_ANSWER
        except SvixUnavailable as failure:
            click.echo(str(failure), err=True)
            status = NO_ANSWER
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            status = INTERRUPTED
        sys.exit(status)

    return running


def print_answer(text: str, value: object, *, as_json: bool) -> None:
    """Print an answer: `text`, or `value` as JSON."""
    click.echo(json.dumps(value, indent=2) if as_json else text)


class Since(click.ParamType[datetime]):
    """A time in the past: `90m`, `24h`, `7d`, or ISO 8601."""

    name = "when"
    _AGO = re.compile(r"(\d{1,5})([mhd])")
    _UNITS = {"m": "minutes", "h": "hours", "d": "days"}  # noqa: RUF012 - never written to

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Parse the time."""
        if ago := self._AGO.fullmatch(value):
            return datetime.now(UTC) - timedelta(**{self._UNITS[ago[2]]: int(ago[1])})
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is neither a time such as 90m, 24h, 7d nor ISO 8601", param, ctx)
        return at if at.tzinfo else at.replace(tzinfo=UTC)


class Name(click.ParamType[str]):
    """An event's id or a project."""

    name = "name"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Reject a name that can't be printed, encoded or looked up."""
        if not value or not value.isprintable():
            self.fail(f"{value!r} is not the name of an event or a project", param, ctx)
        return value


class StderrProgress:
    """Prints progress to stderr, so that stdout has only the answer.

    Shows how many items are done, and the total if it is known. On a terminal the count is
    rewritten a few times a second. Elsewhere each phase that has items prints one line.
    """

    _INTERVAL = 0.2  # seconds between two rewrites

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._phase = ""
        self._total: int | None = None
        self._count = 0
        self._shown_at = 0.0

    def begin(self, phase: str, total: int | None = None) -> None:
        """A phase begins. `total` is the number of its items; None if it is not known."""
        self.end()
        self._phase, self._total, self._count = phase, total, 0
        self._show()

    def step(self) -> None:
        """An item is done."""
        self._count += 1
        if self._is_terminal and time.monotonic() - self._shown_at > self._INTERVAL:
            self._show()

    def note(self, text: str) -> None:
        """Print something that the operator should know immediately."""
        click.echo(("\n" if self._is_terminal else "") + text, err=True)

    def end(self) -> None:
        """The current phase is over."""
        if self._phase:
            self._show()
            if self._is_terminal:
                click.echo(err=True)
        self._phase = ""

    def _show(self) -> None:
        of = "" if self._total is None else f" of {self._total:,}"
        line = f"{self._phase:14}{self._count:,}{of}"
        if self._is_terminal:
            click.echo(f"\r{line}", nl=False, err=True)
        elif self._count:
            click.echo(line, err=True)
        self._shown_at = time.monotonic()
