"""The numbers for pacing, and how each was found.

"Simulated" means: one to four instances send 20,000 events in virtual time to a Svix that answers
in 100 ms and whose limit is a token bucket of 50 calls a second with a burst of 50 (`make bench
ARGS=drain`; docs/measurements.md has the figures). All times are in seconds.
"""

# Until Svix refuses its first call, only the number of open turns is bounded.

FIRST_WINDOW = 30
"""The window at the start, in open turns. Simulated: with 30, at most 0.9 % of the calls are
refused; with 50, 1.1 %."""

LARGEST_WINDOW = 200
"""The window's maximum. On one processor, more calls in flight did not raise the throughput."""

SHARE = 0.5
"""The share of the window that one project may fill while others wait. Simulated: without this
bound, sixty hanging calls of one project delayed every project by 8.9 s at a cold start. Two
projects whose calls all hang do fill the window, until their calls time out. Then they count as an
outage, which ends when a probe of another project succeeds."""

# The first refusal sets the rate to the number of sends that Svix processed in one second. From
# there the rate rises, in search of the limit.

LOWEST_LEVEL = 0.2
"""The lowest rate that a refusal sets, in calls a second. At a lower rate, there are too few
answers to learn from."""

SILENCE = 0.5
"""For this time after the first refusal, no turn is given. The first burst has used up Svix's
limit, so the next calls may be refused too, and their refusals would end the search too early."""

DOUBLING = 2.0
"""During the search, the rate doubles in this time of use. If the search were faster, too many
calls would be in flight when it reaches the limit."""

# After the search, each refusal cuts the rate, and a cubic curve raises it again. The curve is flat
# after the cut, then ever steeper (like the second half of TCP CUBIC's,
# https://www.rfc-editor.org/rfc/rfc9438).

CUT = 0.9
"""A refusal multiplies the rate by this. Simulated: with 0.95, 0.5 % more of the calls are refused;
with 0.8, less of the limit is used."""

CLIMB = 20.0
"""After this time of use, the rate is twice what the cut left. The climb is this fast because, at
the end of a backlog, only one instance may still have requests. It should then soon use the whole
limit, also the part that the other instances no longer need."""

MAKE_UP = 0.1
"""If the event loop is late by up to this time, turns that came due meanwhile are still given. A
busy event loop can be this late."""

UNCALLED = 0.25
"""Seconds. The turns whose call has not begun are at most as many as the rate gives in this time;
one is always allowed. Without this bound, a slow ledger would cause a burst of calls to Svix as
soon as the ledger answers again."""

# Pauses, during which only probes are sent.

REFUSALS_TO_CLOSE = 3
"""This many refusals in a row begin the pause that is called the closed gate (`pauses.py`). A
refusal counts only if it changed the rate. With several instances, two in a row happen by
chance."""

FAILURES_TO_PAUSE = 5
"""Failures in a row, of different events, that begin a pause. A single failure is not an outage."""

MANY_FAIL, LAST_CALLS = 0.35, 50
"""An event that fails again and again may be nacked early (`_HOPELESS_FAILURES` in `delivery.py`),
but only while less than this share of about the last 50 calls failed. If more failed, Svix is the
cause, not the event. Bad events of one customer stay below this share, because that project's line
is paused. Simulated: without this bound, while half of all calls failed, one good event in 3,000
was nacked early."""

FIRST_PAUSE = 0.5
"""The time to the first probe. It doubles with each probe that fails or is refused, unless the
refusal has a Retry-After."""

LONGEST_GATE = 60.0
"""The maximum time between two probes while the gate is closed, even if Retry-After is longer. One
probe a minute is no load for Svix."""

LONGEST_OUTAGE = 5.0
"""The maximum time between two probes in an outage. Its end is noticed within about this time."""

FIRST_CLAIMS_PAUSE = 0.2
"""The time to the first probe after a failed claim. It is shorter than `FIRST_PAUSE`, because a
claim is usually tried for five seconds before it fails."""

JITTER = 0.1
"""Each pause is up to this share longer, at random, so that instances do not probe together."""

PROBE_PATIENCE = 1.0
"""After this time, an unanswered probe no longer delays a probe of another project. One customer's
hanging event must not prolong an outage for all. Svix usually answers in a tenth of this time."""

# Nacks: with each nack Pub/Sub doubles a back-off that slows down the whole subscription.

ACKS_BETWEEN_NACKS = 2
"""Each ack halves Pub/Sub's back-off and each nack doubles it. So after one nack and two acks, the
back-off is shorter than before the nack."""

BETWEEN_NACKS = 0.5
"""The minimum time between two nacks. Counting acks is not enough: twenty simultaneous nacks raise
the back-off to its maximum of a minute before any ack can lower it."""

PROJECTS_REMEMBERED = 1000
"""The maximum of projects whose failures are remembered. The project that failed longest ago is
forgotten first."""
