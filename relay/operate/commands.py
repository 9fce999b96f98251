"""The command line: `python -m relay --help`."""

import asyncio
import signal
from dataclasses import asdict
from datetime import datetime

import click

from relay.operate import check as checks
from relay.operate import render
from relay.operate.cli import (
    CALLS_A_SECOND,
    INTERRUPTED,
    NO_ANSWER,
    NOT_SENT,
    OK,
    PATIENCE,
    Name,
    Since,
    StderrProgress,
    as_json,
    open_tools,
    print_answer,
    run,
)
from relay.operate.dead_letters import dead_letters
from relay.operate.inspection import inspect as inspect_event
from relay.operate.reconciliation import Reconciliation, Repair
from relay.operate.report import Report
from relay.operate.whereabouts import Fanout

CHECK_PATIENCE = 5.0  # seconds; a check should report a failure, not wait until it has passed


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
def main() -> None:
    """Look into the relay, and repair its records.

    Reads the same environment variables as the function.

    Exit status: 0 all is well; 1 something is not sent; 2 wrong usage or settings; 3 the ledger or
    Svix did not answer, or `check` found a fault; 130 interrupted.
    """


main.add_command(dead_letters)


@main.command()
@click.argument("event_id", type=Name())
@click.option("--project", type=Name(), required=True, help="The event's project.")
@as_json
@run
async def inspect(event_id: str, project: str, *, as_json: bool) -> int:
    """Show where one event is, and what happens next.

    Exit status 1 if Svix does not have the event or never sent it on, 3 if Svix did not answer.
    """
    async with open_tools() as tools, tools.svix() as svix:
        found = await inspect_event(tools.archive, svix, project, event_id)
    print_answer(render.inspection(found), render.inspection_json(found), as_json=as_json)
    if found.svix_failure:
        return NO_ANSWER
    sent = found.evidence.svix is not None and found.evidence.svix.message is not None
    return OK if sent and found.where.fanout is not Fanout.NEVER_SENT_ON else NOT_SENT


@main.command()
@click.option("--since", type=Since(), required=True, help="90m, 24h, 7d, or ISO 8601.")
@click.option(
    "--project",
    "projects",
    type=Name(),
    multiple=True,
    help="Only this project's events. May be repeated.",
)
@click.option(
    "--fix",
    is_flag=True,
    help="Repair records, and have Svix send the messages that it never sent to an endpoint.",
)
@click.option(
    "--attempts",
    is_flag=True,
    help="Look at Svix's attempts for every recorded event, not only for unconfirmed fan-outs.",
)
@click.option(
    "--rate",
    type=click.FloatRange(0.1, 1000),
    default=CALLS_A_SECOND,
    show_default=True,
    help="Calls to Svix a second. The function shares Svix's limit.",
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

    Looks at the records written at --since or later, and at all undelivered ones. --fix marks as
    delivered the events that Svix has, releases events that Svix has lost, and makes Svix send
    messages that it never sent on. Exit status 1 if an event is not sent, even if it only waits for
    its redelivery.
    """
    report, progress = Report(since), StderrProgress()
    async with (
        open_tools() as tools,
        tools.svix(
            rate=rate,
            patience=PATIENCE,
            waiting=lambda reason, seconds: progress.note(
                f"Svix: {reason}; retrying in {seconds:.0f} s"
            ),
        ) as svix,
    ):
        reconciliation = Reconciliation(
            tools.archive,
            svix,
            report,
            progress,
            repair=Repair.EVERYTHING if fix else Repair.NOTHING,
            patience=PATIENCE,
            look_again=True,
            projects=projects,
            every_attempt=attempts,
        )
        running = asyncio.create_task(reconciliation.run())
        # SIGINT cancels this command's own task, and with it `running`, which the task awaits.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
        interrupted = False
        try:
            await running
        except asyncio.CancelledError:
            report.failure, interrupted = "interrupted", True
        progress.end()
    print_answer(render.report(report), render.report_json(report), as_json=as_json)
    if interrupted:
        return INTERRUPTED
    if report.needs_operator or report.late:
        return NOT_SENT
    return OK if report.complete else NO_ANSWER


@main.command()
@as_json
@run
async def check(*, as_json: bool) -> int:
    """Check the settings, the token, the ledger and the clock."""
    async with open_tools() as tools, tools.svix(patience=CHECK_PATIENCE) as svix:
        found = [await checks.check_token(svix), *await checks.check_ledger(tools.archive)]
        settings = checks.settings(tools.settings)
    value = {"settings": settings, "checks": [asdict(each) for each in found]}
    print_answer(checks.render(settings, found), value, as_json=as_json)
    return NO_ANSWER if any(each.advice for each in found) else OK
