"""The numbers for pacing, and how each was found.

"Simulated" means: 20,000 events in virtual time against a token bucket of 50 calls a second, burst
50, 100 ms, by one to four instances (`make bench ARGS=drain`; docs/measurements.md has the
figures). All times are in seconds.
"""

# While no limit has been met, only the calls in flight are bounded.

FIRST_WINDOW = 30
"""Calls in flight at a start. Simulated: 30 costs at most 0.9 % refused calls, 50 costs 1.1 %."""

LARGEST_WINDOW = 200
"""The most calls in flight. On one processor, more calls did not raise the throughput."""

SHARE = 0.5
"""The share of the window that one project may fill while others wait. Simulated: without this
bound, sixty hanging calls of one project cost every project 8.9 s at a cold start."""

# The first refusal sets the rate to what Svix took in one second. From there the rate goes up, in
# search of the limit.

LOWEST_LEVEL = 0.2
"""Calls a second. At a lower rate, answers come too seldom to learn from."""

SILENCE = 0.5
"""After the first refusal no turn is given for this long. Svix may still refuse calls of the first
burst. If the search had already begun, such a refusal would end it too early."""

DOUBLING = 2.0
"""The search doubles the rate in this time. If it were faster, too many calls would already be in
flight when the search ends."""

# After the search, each refusal cuts the rate, and a cubic curve raises it again. The curve is flat
# near the limit and steep away from it (as in TCP CUBIC, https://www.rfc-editor.org/rfc/rfc9438).

CUT = 0.9
"""A refusal multiplies the rate by this. Simulated: with 0.95, another 0.5 % of the calls are
refused; with 0.8, less of the limit is used."""

CLIMB = 20.0
"""After this time at full use, the rate has doubled since the cut. At the end of a backlog one
instance still has requests when the others have none. A slower climb would take up their share of
the limit too late."""

MAKE_UP = 0.1
"""Turns missed in this time may be made up. A busy event loop can be this late."""

UNCALLED = 0.25
"""The most turns that are given and whose call has not begun, in seconds' worth of the rate.
Without this bound, a slow ledger would cause a burst of calls to Svix when it answers again."""

# Pauses: only probes go.

REFUSALS_TO_CLOSE = 3
"""This many refusals in a row close the gate; only those that changed the rate count. With several
instances, two in a row happen by chance."""

FAILURES_TO_PAUSE = 5
"""Failures in a row, of different events, that begin a pause. A single failure is not an outage."""

FIRST_PAUSE = 0.5
"""The first pause; it doubles with each probe that is refused or fails."""

LONGEST_GATE = 60.0
"""The longest time between two probes while the gate is closed, however long Retry-After is. One
probe a minute is no load for Svix."""

LONGEST_OUTAGE = 5.0
"""The longest time between two probes in an outage. The end of an outage is noticed this soon."""

FIRST_CLAIMS_PAUSE = 0.2
"""The first pause of claims. It is shorter than `FIRST_PAUSE`, because the claim that failed had
already been tried for five seconds."""

JITTER = 0.1
"""A pause is lengthened at random by up to this share, so that instances do not probe together."""

PROBE_PATIENCE = 1.0
"""After this time, an unanswered probe no longer holds back a probe of another project. Svix
usually answers in a tenth of it. One customer's hanging event must not prolong an outage for
all."""

# Nacks: with each nack Pub/Sub doubles a back-off that slows down the whole subscription.

ACKS_BETWEEN_NACKS = 2
"""Each ack halves Pub/Sub's back-off. Two acks more than undo the doubling of one nack."""

BETWEEN_NACKS = 0.5
"""The shortest time between two nacks. Twenty nacks at once raise the back-off to its maximum of
a minute, however many acks follow."""

PROJECTS_REMEMBERED = 1000
"""The most projects whose failures are remembered. The one that failed longest ago is forgotten
first."""
