"""When the next call to Svix may go.

pacer.py     gives turns: waiting, in asyncio; everything else here but the nacks is pure
traffic.py   the turns under way, and what each one's end says about Svix
rate.py      how fast calls may go
pauses.py    when nothing goes but probes
lines.py     who is next
nacks.py     when a push may be nacked
tuning.py    the numbers of all this, and how each was found
"""

from relay.pacing.lines import Waiter
from relay.pacing.nacks import Nacks
from relay.pacing.pacer import NoTurn, Pacer, PacerState
from relay.pacing.turn import Turn

__all__ = ["Nacks", "NoTurn", "Pacer", "PacerState", "Turn", "Waiter"]
