"""Decides when the next call to Svix may go.

pacer.py     lets requests wait for turns, in asyncio
turn.py      one turn, as a request uses it
traffic.py   the open turns, and what each answer says about Svix
rate.py      how fast calls may go
pauses.py    the pauses, in which only probes go; pause.py is one of them
lines.py     who waits, and who is next
nacks.py     when a push may be nacked, in asyncio
tuning.py    the numbers for all of these, and how each was found

Only `pacer.py` and `nacks.py` use the event loop. To the others the time is passed in.
"""

from relay.pacing.lines import Waiter
from relay.pacing.nacks import Nacks
from relay.pacing.pacer import NoTurn, Pacer, PacerState
from relay.pacing.turn import Turn

__all__ = ["Nacks", "NoTurn", "Pacer", "PacerState", "Turn", "Waiter"]
