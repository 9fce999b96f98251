"""The command line: what is asked, how it is run, and exit codes for scripts.

0: as it should be. 1: something is not sent. 2: wrong usage or settings. 3: the ledger or Svix
could not be asked. 130: interrupted.
"""

import asyncio
import contextlib
import functools
import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, ParamSpec, Self

import click

from relay.config import ConfigurationError, Settings
from relay.ledger import Archive, DeadLetter, LedgerUnavailable
from relay.operate import checkup, printed, whereabouts
from relay.operate.reconciliation import Reconciliation
from relay.operate.replay import Replay
from relay.operate.svix import SvixSilent, SvixView
from relay.outcome import Outcome, Result
from relay.worker import ledger_opener

_NOT_SENT, _USAGE, _NO_ANSWER, _INTERRUPTED = 1, 2, 3, 130

_P = ParamSpec("_P")

_as_json = click.option("--json", "as_json", is_flag=True, help="JSON, for scripts.")


@dataclass(frozen=True, slots=True)
class _Tools:
    """What a command works with, while it runs."""

    settings: Settings
    archive: Archive
    svix: SvixView

    @property
    def lease(self) -> timedelta:
        return timedelta(seconds=self.settings.lease)


@contextlib.asynccontextmanager
async def _tools() -> AsyncIterator[_Tools]:
    settings = Settings.from_environment(os.environ)
    archive = ledger_opener(settings)()
    try:
        yield _Tools(settings, archive, SvixView(settings.svix_token, settings.svix_server_url))
    finally:
        await archive.close()


def _run(command: Callable[_P, Coroutine[Any, Any, int]]) -> Callable[_P, None]:
    """Run a command in a loop of its own, and leave with its exit status."""

    @functools.wraps(command)
    def run(*arguments: _P.args, **options: _P.kwargs) -> None:
        try:
            status = asyncio.run(command(*arguments, **options))
        except ConfigurationError as fault:
            click.echo(str(fault), err=True)
            status = _USAGE
        except LedgerUnavailable as failure:
            click.echo(f"The ledger could not be asked: {failure}", err=True)
            status = _NO_ANSWER
        except SvixSilent as silence:
            click.echo(str(silence), err=True)
            status = _NO_ANSWER
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            status = _INTERRUPTED
        sys.exit(status)

    return run


def _say(text: str, value: object, *, as_json: bool) -> None:
    click.echo(json.dumps(value, indent=2) if as_json else text)


class _Since(click.ParamType[datetime]):
    """A time in the past: `90m`, `24h`, `7d`, or ISO 8601."""

    name = "when"
    _AGO = re.compile(r"(\d{1,5})([mhd])")
    _UNITS = {"m": "minutes", "h": "hours", "d": "days"}  # noqa: RUF012 - never written to

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        if ago := self._AGO.fullmatch(value):
            return datetime.now(UTC) - timedelta(**{self._UNITS[ago[2]]: int(ago[1])})
        try:
            when = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is neither like 90m, 24h, 7d nor ISO 8601", param, ctx)
        return when if when.tzinfo else when.replace(tzinfo=UTC)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
def main() -> None:
    """Look into the relay, and mend it: reads the same environment variables as the function.

    Exit status: 0 as it should be; 1 something is not sent; 2 wrong usage or settings; 3 the
    ledger or Svix could not be asked; 130 interrupted.
    """


@main.command()
@click.argument("event_id")
@click.option("--project", required=True, help="The event's project: its Svix application.")
@_as_json
@_run
async def inspect(event_id: str, project: str, *, as_json: bool) -> int:
    """Say where one event is: in the ledger, in Svix, at the customer's endpoints.

    Exit status 0 where it is in Svix, 1 where it is not.
    """
    async with _tools() as tools:
        found = await whereabouts.find(tools.archive, tools.svix, project, event_id, tools.lease)
    _say(printed.whereabouts(found), printed.whereabouts_json(found), as_json=as_json)
    if found.svix_silent:
        return _NO_ANSWER
    return 0 if found.place.is_in_svix else _NOT_SENT


# -- dead letters


@main.group("dead-letters")
def dead_letters() -> None:
    """What was parked because it can never be sent as things are: look, replay, discard."""


@dataclass(frozen=True, slots=True)
class _Filter:
    project: str | None
    event_type: str | None
    reason: str | None
    since: datetime | None

    async def letters(self, archive: Archive) -> AsyncIterator[tuple[str, DeadLetter]]:
        async for letter_id, letter in archive.dead_letters(project=self.project):
            if not letter.discarded and self._takes(letter):
                yield letter_id, letter

    def _takes(self, letter: DeadLetter) -> bool:
        return (
            (self.event_type is None or letter.event_type == self.event_type)
            and (self.reason is None or self.reason in f"{letter.reason}: {letter.detail}")
            and (
                self.since is None
                or (letter.parked_at is not None and letter.parked_at >= self.since)
            )
        )


def _filters(command: Callable[..., None]) -> Callable[..., None]:
    @click.option("--project", help="Only this project's.")
    @click.option("--type", "event_type", help="Only events of this type.")
    @click.option("--reason", help="Only where the reason holds this, such as `413`.")
    @click.option("--since", type=_Since(), help="Only parked since: 90m, 24h, 7d, or ISO 8601.")
    @functools.wraps(command)
    def filtered(
        project: str | None,
        event_type: str | None,
        reason: str | None,
        since: datetime | None,
        **options: object,
    ) -> None:
        command(wanted=_Filter(project, event_type, reason, since), **options)

    return filtered


@dead_letters.command("list")
@_filters
@_as_json
@_run
async def list_letters(*, wanted: _Filter, as_json: bool) -> int:
    """List what is parked. What was discarded is left out."""
    async with _tools() as tools:
        letters = [letter async for letter in wanted.letters(tools.archive)]
    listed = [printed.letter_json(*letter) for letter in letters]
    _say(printed.letters(letters), listed, as_json=as_json)
    return 0


@dead_letters.command()
@click.argument("letter_id", metavar="ID")
@click.option("--payload", is_flag=True, help="The event's own bytes too: personal data.")
@_as_json
@_run
async def show(letter_id: str, *, payload: bool, as_json: bool) -> int:
    """Show one dead letter; the beginning of its id will do."""
    async with _tools() as tools:
        whole_id = await _one(tools.archive, letter_id)
        letter = await tools.archive.dead_letter(whole_id)
    if letter is None:
        raise click.UsageError(f"{letter_id} has just been removed")
    value = printed.letter_json(whole_id, letter)
    if payload:
        value["payload"] = letter.data.decode(errors="replace")
    text = printed.letter(whole_id, letter)
    _say(f"{text}\n\n{value['payload']}" if payload else text, value, as_json=as_json)
    return 0


@dead_letters.command("replay")
@click.argument("letter_ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All that the filters leave.")
@_filters
@_as_json
@_run
async def replay_letters(
    letter_ids: tuple[str, ...], *, wanted: _Filter, every: bool, as_json: bool
) -> int:
    """Send dead letters again: by the function's own way, and Svix is asked first.

    What was delivered is removed, the rest stays. May be interrupted, and run again. Exit status 1
    where something stays.
    """
    filtered = wanted != _Filter(None, None, None, None)
    if every == bool(letter_ids) or (letter_ids and filtered):
        raise click.UsageError("name the dead letters, or say --all, which filters may narrow")
    async with _tools() as tools:
        if every:
            chosen = [letter_id async for letter_id, _ in wanted.letters(tools.archive)]
        else:
            chosen = [await _one(tools.archive, letter_id) for letter_id in letter_ids]
        replay = Replay(tools.settings, tools.archive)
        results: dict[str, Result] = {}
        with _stopping(replay) as stopped, _bar("Replay", len(chosen)) as step:
            async for letter_id, result in replay.run(chosen):
                results[letter_id] = result
                step()
    text = printed.replayed(results, len(chosen) - len(results))
    _say(text, printed.replayed_json(results, len(chosen) - len(results)), as_json=as_json)
    if stopped:
        return _INTERRUPTED
    outcomes = Counter(result.outcome for result in results.values())
    kept = len(chosen) - outcomes[Outcome.DELIVERED] - outcomes[Outcome.DUPLICATE]
    return _NOT_SENT if kept else 0


@dead_letters.command()
@click.argument("letter_ids", metavar="ID...", nargs=-1, required=True)
@click.option("--reason", required=True, help="Why: it is kept, the event's bytes are not.")
@_as_json
@_run
async def discard(letter_ids: tuple[str, ...], *, reason: str, as_json: bool) -> int:
    """Give dead letters up: their bytes are deleted, what they were and why is kept."""
    async with _tools() as tools:
        chosen = [await _one(tools.archive, letter_id) for letter_id in letter_ids]
        for letter_id in chosen:
            if letter := await tools.archive.dead_letter(letter_id):
                tombstone = replace(letter, data=b"", attributes="{}", discarded=reason)
                await tools.archive.restate(letter_id, tombstone)
    _say(f"Discarded: {len(chosen)}.", {"discarded": chosen}, as_json=as_json)
    return 0


async def _one(archive: Archive, beginning: str) -> str:
    """The one dead letter whose id begins so."""
    if not re.fullmatch(r"[0-9a-f]{1,64}", beginning):
        raise click.UsageError(f"{beginning!r} is no dead letter's id: `list` shows them")
    found = [i async for i, letter in archive.dead_letters(beginning) if not letter.discarded]
    if len(found) != 1:
        word = "No dead letter's id begins" if not found else f"{len(found)} ids begin"
        raise click.UsageError(f"{word} with {beginning}: `dead-letters list` shows them")
    return found[0]


# -- the whole


@main.command()
@click.option("--since", type=_Since(), required=True, help="90m, 24h, 7d, or ISO 8601.")
@click.option("--fix", is_flag=True, help="Settle what Svix has, release what it hasn't.")
@_as_json
@_run
async def reconcile(*, since: datetime, fix: bool, as_json: bool) -> int:
    """Compare the ledger with Svix: was everything sent?

    Reads every record of the ledger (on Firestore about 0.30 dollars a million). Exit status 1
    where a customer goes without an event.
    """
    async with _tools() as tools:
        compared = Reconciliation(tools.archive, tools.svix, tools.lease, since, mend=fix)
        with compared, _Bars() as progress:
            report = await compared.run(progress)
    _say(printed.report(report), printed.report_json(report), as_json=as_json)
    return 0 if report.is_complete else _NOT_SENT


@main.command()
@_as_json
@_run
async def check(*, as_json: bool) -> int:
    """Try settings, token, ledger and clock: would a delivery work from here?"""
    async with _tools() as tools:
        found = [await checkup.token(tools.svix), *await checkup.ledger(tools.archive)]
    settings = printed.settings(tools.settings)
    value = {"settings": settings, "checks": [asdict(finding) for finding in found]}
    _say(printed.checkup(settings, found), value, as_json=as_json)
    return _NO_ANSWER if any(finding.advice for finding in found) else 0


# -- while it runs: on stderr, so that what is printed stays clean


@contextlib.contextmanager
def _bar(label: str, length: int) -> Iterator[Callable[[], None]]:
    with click.progressbar(length=length, label=f"{label:8}", file=sys.stderr, width=30) as bar:
        yield lambda: bar.update(1)


class _Bars:
    """One progress bar after the other."""

    def __init__(self) -> None:
        self._running = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def begin(self, label: str, length: int) -> None:
        self._running.close()
        self.step = self._running.enter_context(_bar(label, length))


@contextlib.contextmanager
def _stopping(replay: Replay) -> Iterator[list[int]]:
    """End the replay in good order at the first SIGINT or SIGTERM; the second ends the process.

    What is yielded holds the signal, once there was one.
    """
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    came: list[int] = []

    def stop(number: int) -> None:
        came.append(number)
        for each in numbers:
            loop.remove_signal_handler(each)
        click.echo("\nStopping: waiting for what Svix is being sent just now.", err=True)
        replay.stop()

    for number in numbers:
        loop.add_signal_handler(number, stop, number)
    try:
        yield came
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
