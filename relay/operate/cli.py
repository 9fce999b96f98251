"""What the commands have in common: how they are run, exit codes, options, progress.

0: as it should be. 1: something is not sent. 2: wrong usage or settings. 3: the ledger or Svix
could not be asked. 130: interrupted.
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

AS_IT_SHOULD_BE, NOT_SENT, WRONG_USAGE, NO_ANSWER, INTERRUPTED = 0, 1, 2, 3, 130

PATIENCE = 300.0
"""Seconds that a long command waits for a ledger or a Svix that fails: a deployment or a failover
of either is over by then."""
SHORT_PATIENCE = 20.0
"""Seconds, where somebody waits for one answer."""
CALLS_A_SECOND = 2.0
"""To Svix, where many are made and nothing else is said: its limit is the function's."""
_FEW_CALLS_A_SECOND = 20.0
"""To Svix, where a handful is made."""

_P = ParamSpec("_P")

as_json = click.option("--json", "as_json", is_flag=True, help="JSON, for scripts.")


@dataclass(frozen=True, slots=True)
class Tools:
    """What a command works with, while it runs."""

    settings: Settings
    archive: Archive

    def svix(
        self,
        *,
        rate: float = _FEW_CALLS_A_SECOND,
        patience: float = SHORT_PATIENCE,
        waiting: Callable[[str, float], None] = lambda _reason, _seconds: None,
    ) -> SvixView:
        """A view of Svix, to be closed."""
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
    """Run a command in a loop of its own, and leave with its exit status."""

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
            click.echo(f"The ledger could not be asked: {failure}", err=True)
            status = NO_ANSWER
        except SvixUnavailable as failure:
            click.echo(str(failure), err=True)
            status = NO_ANSWER
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            status = INTERRUPTED
        sys.exit(status)

    return running


def say(text: str, value: object, *, as_json: bool) -> None:
    """Print an answer, as text or as JSON."""
    click.echo(json.dumps(value, indent=2) if as_json else text)


class Since(click.ParamType[datetime]):
    """A time in the past: `90m`, `24h`, `7d`, or ISO 8601."""

    name = "when"
    _AGO = re.compile(r"(\d{1,5})([mhd])")
    _UNITS = {"m": "minutes", "h": "hours", "d": "days"}  # noqa: RUF012 - never written to

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Read what was typed."""
        if ago := self._AGO.fullmatch(value):
            return datetime.now(UTC) - timedelta(**{self._UNITS[ago[2]]: int(ago[1])})
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is neither like 90m, 24h, 7d nor ISO 8601", param, ctx)
        return at if at.tzinfo else at.replace(tzinfo=UTC)


class Name(click.ParamType[str]):
    """An event's id or a project."""

    name = "name"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuse what can't be printed, encoded or looked up."""
        if not value or not value.isprintable():
            self.fail(f"{value!r} is no name of an event or a project", param, ctx)
        return value


class Counter:
    """Progress on stderr, so that what is printed stays clean.

    Counts what is done, and knows a total only where nobody has to be asked for it. On a terminal
    the count is rewritten a few times a second; elsewhere each phase has one line.
    """

    _INTERVAL = 0.2  # seconds between two rewrites

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._phase = ""
        self._total: int | None = None
        self._count = 0
        self._shown_at = 0.0

    def begin(self, phase: str, total: int | None = None) -> None:
        """A phase begins; `total` None: nobody knows how many items it has."""
        self.end()
        self._phase, self._total, self._count = phase, total, 0
        self._show()

    def step(self) -> None:
        """An item is done."""
        self._count += 1
        if self._is_terminal and time.monotonic() - self._shown_at > self._INTERVAL:
            self._show()

    def note(self, text: str) -> None:
        """Something that the operator should know now."""
        click.echo(("\n" if self._is_terminal else "") + text, err=True)

    def end(self) -> None:
        """The last phase is over."""
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
