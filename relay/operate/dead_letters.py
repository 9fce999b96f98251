"""`python -m relay dead-letters`: lists, shows, replays and discards dead letters."""

import asyncio
import contextlib
import functools
import heapq
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import click

from relay.ledger import Archive, DeadLetter, LedgerUnavailable, LetterDamaged
from relay.operate.cli import (
    INTERRUPTED,
    NO_ANSWER,
    NOT_SENT,
    OK,
    Name,
    Since,
    StderrProgress,
    as_json,
    open_tools,
    print_answer,
    run,
)
from relay.operate.render import cut, iso, when
from relay.operate.replay import SENT, Replay
from relay.outcome import Result

_PAGE = 50
_REASONS_SHOWN = 20
_FAILURES_SHOWN = 10


@click.group("dead-letters")
def dead_letters() -> None:
    """List, show, replay or discard parked events.

    A dead letter is a push that can't be sent as it is.
    """


@dataclass(frozen=True, slots=True)
class _Filter:
    project: str | None
    event_type: str | None
    reason: str | None
    since: datetime | None

    async def letters(self, archive: Archive) -> AsyncIterator[DeadLetter]:
        """The letters that pass the filter, also discarded ones, without their payloads."""
        async for letter in archive.dead_letters(project=self.project):
            if self._passes(letter):
                yield letter

    def _passes(self, letter: DeadLetter) -> bool:
        return (
            (self.event_type is None or letter.event_type == self.event_type)
            and (self.reason is None or self.reason in _reason(letter))
            and (
                self.since is None
                or (letter.parked_at is not None and letter.parked_at >= self.since)
            )
        )


def _filters(command: Callable[..., None]) -> Callable[..., None]:
    @click.option("--project", type=Name(), help="Only this project's.")
    @click.option("--type", "event_type", help="Only events of this type.")
    @click.option("--reason", help="Only where the reason contains this, such as `413`.")
    @click.option("--since", type=Since(), help="Only parked since: 90m, 24h, 7d, or ISO 8601.")
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


# -- looking


@dead_letters.command("list")
@_filters
@click.option("--page", type=click.IntRange(1), default=1, help=f"{_PAGE} letters each.")
@as_json
@run
async def list_letters(*, wanted: _Filter, page: int, as_json: bool) -> int:
    """Count the dead letters by reason, and list them, the newest first."""
    counts: Counter[str] = Counter()
    discarded = 0
    newest: list[tuple[datetime, str, DeadLetter]] = []
    async with open_tools() as tools:
        async for letter in wanted.letters(tools.archive):
            if letter.discarded is None:
                counts[_reason(letter)] += 1
            else:
                discarded += 1
            # Keep only as many letters as the page needs, because there may be very many.
            entry = (letter.parked_at or datetime.min.replace(tzinfo=UTC), letter.id, letter)
            if len(newest) < page * _PAGE:
                heapq.heappush(newest, entry)
            else:
                heapq.heappushpop(newest, entry)
    shown = [letter for *_, letter in sorted(newest, reverse=True)][(page - 1) * _PAGE :]
    value = {
        "parked": counts.total(),
        "discarded": discarded,
        "reasons": dict(counts.most_common()),
        "page": page,
        "pages": _pages(counts.total() + discarded),
        "letters": [_json(letter) for letter in shown],
    }
    print_answer(_listing(counts, discarded, shown, page), value, as_json=as_json)
    return OK


def _listing(counts: Counter[str], discarded: int, shown: list[DeadLetter], page: int) -> str:
    total = counts.total() + discarded
    lines = [f"{counts.total():,} parked, {discarded:,} discarded"]
    most = counts.most_common(_REASONS_SHOWN)
    lines += [cut(f"{count:7,}  {reason}") for reason, count in most]
    if len(counts) > len(most):
        lines.append(f"         and {len(counts) - len(most):,} other reasons")
    if shown:
        lines.append("")
    for letter in shown:
        names = f"{letter.project or '-'}  {letter.event_type or '-'}"
        lines.append(cut(f"{letter.id[:12]}  {when(letter.parked_at)}  {names}"))
        said = _reason(letter) if letter.discarded is None else f"discarded: {letter.discarded}"
        lines.append(cut(f"              {letter.event_id or '-'}  {said}"))
    if _pages(total) > 1:
        more = f"; `--page {page + 1}` shows the next" if page < _pages(total) else ""
        lines += ["", f"page {page} of {_pages(total):,}{more}"]
    return "\n".join(lines)


def _pages(total: int) -> int:
    return -(-total // _PAGE)


@dead_letters.command()
@click.argument("letter_id", metavar="ID")
@click.option("--payload", is_flag=True, help="Also the event's bytes, which are personal data.")
@as_json
@run
async def show(letter_id: str, *, payload: bool, as_json: bool) -> int:
    """Show one dead letter. The beginning of its id is enough."""
    async with open_tools() as tools:
        whole_id = (await _find(tools.archive, letter_id)).id
        try:
            letter = await tools.archive.dead_letter(whole_id)
        except LetterDamaged as damage:
            raise click.ClickException(str(damage)) from None
    if letter is None:
        raise click.UsageError(f"{letter_id} has just been deleted")
    value = _json(letter) | {"bytes": len(letter.data)}
    text = _sheet(letter)
    if payload:
        value["payload"] = letter.data.decode(errors="replace")
        text += f"\n\n{value['payload']}"
    print_answer(text, value, as_json=as_json)
    return OK


def _sheet(letter: DeadLetter) -> str:
    rows = {
        "id": letter.id,
        "parked": when(letter.parked_at),
        "reason": _reason(letter),
        "discarded": letter.discarded and f"{when(letter.discarded_at)}: {letter.discarded}",
        "event": letter.event_id,
        "type": letter.event_type,
        "project": letter.project,
        "message": letter.message_id,
        "from": letter.subscription,
        "bytes": f"{len(letter.data):,}" if letter.discarded is None else "erased",
    }
    return "\n".join(f"{name:11}{value}" for name, value in rows.items() if value)


# -- sending again


@dead_letters.command("replay")
@click.argument("letter_ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All dead letters that pass the filters.")
@_filters
@as_json
@run
async def replay_letters(
    letter_ids: tuple[str, ...], *, wanted: _Filter, every: bool, as_json: bool
) -> int:
    """Send dead letters again, after asking Svix whether it already has the event.

    Letters whose events are delivered are deleted, the others stay. May be interrupted, and run
    again. Exit status 1 if not every letter was sent.
    """
    filtered = wanted != _Filter(None, None, None, None)
    if every == bool(letter_ids) or (letter_ids and filtered):
        raise click.UsageError("name the dead letters, or give --all, alone or with filters")
    async with open_tools() as tools:
        if every:
            letters = wanted.letters(tools.archive)
            chosen = [letter.id async for letter in letters if letter.discarded is None]
        else:
            chosen = [(await _find(tools.archive, each)).id for each in letter_ids]
        replay = Replay(tools.settings, tools.archive)
        results: dict[str, Result] = {}
        failure, progress = None, StderrProgress()
        progress.begin("Replay", len(chosen))
        with _stopping(replay) as stopped:
            try:
                async for letter_id, result in replay.run(chosen):
                    results[letter_id] = result
                    progress.step()
            except LedgerUnavailable as unavailable:
                failure = unavailable
        progress.end()
    untouched = len(chosen) - len(results)
    value = {
        "replayed": {i: {"outcome": r.outcome, "detail": r.detail} for i, r in results.items()},
        "not_replayed": untouched,
    }
    print_answer(_replayed(results, untouched), value, as_json=as_json)
    if failure is not None:
        click.echo(f"The ledger failed: {failure}", err=True)
        return NO_ANSWER
    if stopped:
        return INTERRUPTED
    sent = sum(result.outcome in SENT for result in results.values())
    return NOT_SENT if sent < len(chosen) else OK


def _replayed(results: dict[str, Result], untouched: int) -> str:
    """The count of each outcome, and the letters that failed."""
    counts = Counter(result.outcome for result in results.values())
    lines = [f"{outcome:18}{count:7,}" for outcome, count in sorted(counts.items())]
    if untouched:
        lines.append(f"{'not replayed':18}{untouched:7,}")
    failed = [(i, r) for i, r in results.items() if r.outcome not in SENT]
    lines += [cut(f"  {i[:12]}  {r.outcome}: {r.detail}") for i, r in failed[:_FAILURES_SHOWN]]
    if len(failed) > _FAILURES_SHOWN:
        more = len(failed) - _FAILURES_SHOWN
        lines.append(f"  and {more:,} more: `dead-letters list` shows them")
    return "\n".join(lines) or "Nothing to replay."


@contextlib.contextmanager
def _stopping(replay: Replay) -> Iterator[list[int]]:
    """Stop the replay at the first SIGINT or SIGTERM. A second signal ends the process.

    Yields a list, to which the first signal is added when it comes.
    """
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    came: list[int] = []

    def stop(number: int) -> None:
        came.append(number)
        for each in numbers:
            loop.remove_signal_handler(each)
        click.echo("\nStopping: waiting for the calls to Svix that are under way.", err=True)
        replay.stop()

    for number in numbers:
        loop.add_signal_handler(number, stop, number)
    try:
        yield came
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


# -- giving up


@dead_letters.command()
@click.argument("letter_ids", metavar="ID...", nargs=-1, required=True)
@click.option("--reason", required=True, help="Why. It is kept with the dead letter.")
@as_json
@run
async def discard(letter_ids: tuple[str, ...], *, reason: str, as_json: bool) -> int:
    """Erase the bytes of dead letters for good. Their names and the reasons are kept."""
    async with open_tools() as tools:
        chosen = [(await _find(tools.archive, each)).id for each in letter_ids]
        for letter_id in chosen:
            await tools.archive.discard_dead_letter(letter_id, reason)
    print_answer(f"Discarded: {len(chosen)}.", {"discarded": chosen}, as_json=as_json)
    return OK


async def _find(archive: Archive, beginning: str) -> DeadLetter:
    """The only dead letter whose id begins with `beginning`, without its payload."""
    if not re.fullmatch(r"[0-9a-f]{1,64}", beginning):
        raise click.UsageError(f"{beginning!r} is not a dead letter's id: `list` shows the ids")
    found = []
    async for letter in archive.dead_letters(beginning):
        found.append(letter)
        if len(found) > 1:
            raise click.UsageError(f"Several ids begin with {beginning}: give more of it")
    if not found:
        raise click.UsageError(f"No dead letter's id begins with {beginning}: see `list`")
    return found[0]


def _reason(letter: DeadLetter) -> str:
    return f"{letter.reason}: {letter.detail}"


def _json(letter: DeadLetter) -> dict[str, object]:
    value = asdict(letter)
    del value["data"], value["attributes"], value["form"]
    at = {"parked_at": iso(letter.parked_at), "discarded_at": iso(letter.discarded_at)}
    return value | at
