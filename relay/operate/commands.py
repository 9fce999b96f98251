"""The command line: `python -m relay --help`."""

import asyncio
import signal
from dataclasses import asdict
from datetime import datetime

import click

from relay.operate import check as checks
from relay.operate import render
from relay.operate.cli import (
    AS_IT_SHOULD_BE,
    CALLS_A_SECOND,
    INTERRUPTED,
    NO_ANSWER,
    NOT_SENT,
    PATIENCE,
    Counter,
    Name,
    Since,
    as_json,
    open_tools,
    run,
    say,
)
from relay.operate.dead_letters import dead_letters
from relay.operate.inspection import inspect as inspect_event
from relay.operate.reconciliation import Mend, Reconciliation
from relay.operate.report import Report
from relay.operate.whereabouts import Fanout

CHECK_PATIENCE = 5.0  # seconds: a fault is what a check is to find


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
def main() -> None:
    """Look into the relay, and mend it: reads the same environment variables as the function.

    Exit status: 0 as it should be; 1 something is not sent; 2 wrong usage or settings; 3 the
    ledger or Svix could not be asked; 130 interrupted.
    """


main.add_command(dead_letters)


@main.command()
@click.argument("event_id", type=Name())
@click.option("--project", type=Name(), required=True, help="Its project: its Svix application.")
@as_json
@run
async def inspect(event_id: str, project: str, *, as_json: bool) -> int:
    """Say where one event is: in the ledger, in Svix, at the customer's endpoints.

    Exit status 0 where Svix has it and sends it on, 1 where it does not.
    """
    async with open_tools() as tools, tools.svix() as svix:
        found = await inspect_event(tools.archive, svix, project, event_id)
    say(render.inspection(found), render.inspection_json(found), as_json=as_json)
    if found.svix_failure:
        return NO_ANSWER
    sent = found.evidence.svix is not None and found.evidence.svix.message is not None
    return AS_IT_SHOULD_BE if sent and found.where.fanout is not Fanout.NEVER_SENT_ON else NOT_SENT


@main.command()
@click.option("--since", type=Since(), required=True, help="90m, 24h, 7d, or ISO 8601.")
@click.option(
    "--project",
    "projects",
    type=Name(),
    multiple=True,
    help="Only this project's events. May be repeated, to finish what a run left out.",
)
@click.option("--fix", is_flag=True, help="Mend what can be mended without a new delivery.")
@click.option(
    "--attempts",
    is_flag=True,
    help="Look at Svix's attempts for every message, not only where its acceptance was inferred.",
)
@click.option(
    "--rate",
    type=click.FloatRange(0.1, 1000),
    default=CALLS_A_SECOND,
    show_default=True,
    help="Calls to Svix a second; the function shares its limit.",
)
@as_json
@run
async def reconcile(
    *,
    since: datetime,
    projects: tuple[str, ...],
    fix: bool,
    attempts: bool,
    rate: float,
    as_json: bool,
) -> int:
    """Compare the ledger with Svix: was everything sent?

    Looks at what was touched since then, and at what is undelivered whatever its age. With --fix,
    records what Svix has as delivered, releases what Svix lost, and has Svix send to endpoints
    what it never sent on. Exit status 1 where something is not sent, or still waits.
    """
    report, progress = Report(since), Counter()
    async with (
        open_tools() as tools,
        tools.svix(
            rate=rate,
            patience=PATIENCE,
            waiting=lambda reason, seconds: progress.note(
                f"Svix: {reason}; asking again in {seconds:.0f} s"
            ),
        ) as svix,
    ):
        reconciliation = Reconciliation(
            tools.archive,
            svix,
            report,
            progress,
            mend=Mend.EVERYTHING if fix else Mend.NOTHING,
            patience=PATIENCE,
            look_again=True,
            projects=projects,
            every_attempt=attempts,
        )
        running = asyncio.create_task(reconciliation.run())
        # SIGINT cancels this command's own task, which cancels `running` with it.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
        interrupted = False
        try:
            await running
        except asyncio.CancelledError:
            report.failure, interrupted = "interrupted", True
        progress.end()
    say(render.report(report), render.report_json(report), as_json=as_json)
    if interrupted:
        return INTERRUPTED
    if report.without or report.late:
        return NOT_SENT
    return AS_IT_SHOULD_BE if report.complete else NO_ANSWER


@main.command()
@as_json
@run
async def check(*, as_json: bool) -> int:
    """Try settings, token, ledger and clock: would a delivery work from here?"""
    async with open_tools() as tools, tools.svix(patience=CHECK_PATIENCE) as svix:
        found = [await checks.check_token(svix), *await checks.check_ledger(tools.archive)]
        settings = checks.settings(tools.settings)
    value = {"settings": settings, "checks": [asdict(each) for each in found]}
    say(checks.render(settings, found), value, as_json=as_json)
    return NO_ANSWER if any(each.advice for each in found) else AS_IT_SHOULD_BE
