"""Decides when the next call to Svix may be made.

pacer.py     lets requests wait for turns
turn.py      one turn, as a request uses it
traffic.py   the open turns, and what each answer says about Svix
rate.py      how many calls a second may be made
pauses.py    all pauses, during which only probes are sent
pause.py     a single pause
lines.py     which requests wait, and which is next
nacks.py     when a push may be nacked
tuning.py    the numbers for all of these, and how each was found

In these modules a refusal is an answer of 429, and a probe is a call that tests whether a pause can
end. Svix "processed" a send if its answer shows that Svix works (`Answer.taken`).

Only `pacer.py` and `nacks.py` use the event loop. `turn.py` reads the pacer's clock.
"""

from relay.pacing.lines import Waiter
from relay.pacing.nacks import Nacks
from relay.pacing.pacer import NoTurn, Pacer, PacerState
from relay.pacing.turn import Turn

__all__ = ["Nacks", "NoTurn", "Pacer", "PacerState", "Turn", "Waiter"]
