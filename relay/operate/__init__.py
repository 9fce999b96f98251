"""The operator's commands: where is my event? `python -m relay --help`.

    commands.py         the command line: options, how it is run, exit codes
    printed.py          what is printed, as text and as JSON
    whereabouts.py      one event, from the ledger through Svix to the customer's endpoints
    replay.py           parked events, sent again
    reconciliation.py   was everything sent: the ledger beside Svix
    checkup.py          would a delivery work from here
    svix.py             what Svix says

They read the function's settings and its ledger. Imports run downwards.
"""
