"""The operator's commands: where is my event? `python -m relay --help`.

    commands.py      the command line: options, exit codes, what is printed
    whereabouts.py   one event, from the ledger through Svix to the customer's endpoints
    svix.py          what Svix says

They read the function's settings and its ledger. Imports run downwards.
"""
