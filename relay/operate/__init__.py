"""The operator's commands: where is my event, and was everything sent? `python -m relay --help`.

    commands.py         the command line: inspect, reconcile, check
    dead_letters.py     the command line: dead-letters
    cli.py              what the commands have in common
    scheduled.py        `POST /reconcile`
    render.py           what is printed, as text and as JSON
    replay.py           dead letters, sent again
    reconciliation.py   was everything sent: the ledger beside Svix
    report.py           what a reconciliation has found so far
    worklist.py         what a reconciliation still has to look at
    inspection.py       everything that is known of one event
    check.py            would a delivery work from here
    svix.py             what Svix says
    whereabouts.py      where an event is: the one judge of it, pure

They read the function's settings and its ledger. Imports run downwards.
"""
