"""The numbers of the pacing, and how each was found.

"Simulated" means: 20,000 events in virtual time against a token bucket of 50 calls a second, burst
50, 100 ms, by one to four instances (`make bench ARGS=drain`; docs/measurements.md has the
figures). All times are in seconds.
"""

# While no limit has been met, only the calls in flight are bounded.

FIRST_WINDOW = 30
"""Calls in flight at a start. Simulated: 30 costs at most 0.9 % refused calls, 50 costs 1.1 %."""

LARGEST_WINDOW = 200
"""Calls in flight at most: more did not make one processor faster, at any Svix."""

SHARE = 0.5
"""Of the window, what one project may fill while others wait. Simulated: without it sixty hanging
calls of one project cost everybody 8.9 s at a cold start."""

# The first refusal sets a level, and a search for the limit goes up from there.

LOWEST_LEVEL = 0.2
"""Calls a second. Below it, a rate takes minutes to show anything."""

SILENCE = 0.5
"""After the first refusal nothing goes for this long: the first burst's calls, still under way,
would otherwise be refused into the search and end it."""

DOUBLING = 2.0
"""The search doubles the rate in this time. Growing faster, too many calls are already in flight
when the refusal arrives that ends it."""

# With the limit found, each refusal cuts the rate, and a cubic curve brings it back: flat where the
# limit was, and steep away from it (as TCP CUBIC, https://www.rfc-editor.org/rfc/rfc9438).

CUT = 0.9
"""What a refusal leaves of the rate. Simulated: 0.95 costs half a point more refused calls, 0.8
costs use."""

CLIMB = 20.0
"""After this time at full use the rate has doubled since the cut. At the end of a backlog one
instance's line outlasts the others', and slower climbs waste what the others left."""

MAKE_UP = 0.1
"""Turns that nobody used can be made up for this long: as much as a busy event loop is late."""

UNCALLED = 0.25
"""This many seconds' turns may be given and not called yet, so that a ledger that was slow does
not turn into a burst at Svix."""

# Pauses: when nothing goes but one probe.

REFUSALS_TO_CLOSE = 3
"""Fresh refusals in a row that close the gate: two happen by chance with several instances."""

FAILURES_TO_PAUSE = 5
"""Different events that failed in a row: a single failure is no outage."""

FIRST_PAUSE = 0.5
"""Doubled with each probe that is refused or fails."""

LONGEST_GATE = 60.0
"""However long Retry-After is: a probe a minute costs Svix nothing."""

LONGEST_OUTAGE = 5.0
"""The end of an outage is noticed this soon."""

FIRST_CLAIMS_PAUSE = 0.2
"""Shorter than for calls: it follows five seconds of trying to claim."""

JITTER = 0.1
"""The share by which pauses are lengthened at random, so that instances do not probe together."""

PROBE_PATIENCE = 1.0
"""A probe that is unanswered for this long holds back no probe of another project: Svix answers in
a tenth of it, and one customer's hanging event must not prolong the outage for all."""

# Nacks: Pub/Sub charges each one to the whole subscription, with a pause that doubles.

ACKS_BETWEEN_NACKS = 2
"""Each ack halves Pub/Sub's pause: two undo one doubling."""

BETWEEN_NACKS = 0.5
"""Twenty nacks at once drive push back-off to its minute, however many acks follow."""

PROJECTS_REMEMBERED = 1000
"""Projects whose failures are remembered; the one that failed longest ago is forgotten first."""
