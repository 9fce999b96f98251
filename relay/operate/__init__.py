"""The operator's commands: `python -m relay --help`. They use the function's settings and ledger.

commands.py         the commands inspect, reconcile and check
dead_letters.py     the command dead-letters
cli.py              what the commands share
scheduled.py        `POST /reconcile`
render.py           the output of inspect and reconcile, as text and as JSON
replay.py           sends dead letters again
reconciliation.py   compares the ledger with Svix
report.py           what a reconciliation has found so far
worklist.py         the events that a reconciliation still has to judge
inspection.py       collects all that is known about one event
check.py            checks the token, the ledger and the clock
svix.py             asks Svix about messages, endpoints and attempts
whereabouts.py      decides where an event is
"""
