"""Where an event is, for every combination of its record, Svix and its dead letters."""

from datetime import datetime, timedelta

import pytest

from relay.ledger import DeadLetter, Record, State
from relay.operate.whereabouts import (
    AttemptStatus,
    Destinations,
    Endpoint,
    Evidence,
    Fanout,
    Place,
    Remedy,
    Standing,
    SvixAnswer,
    Whereabouts,
    locate,
)
from tests.operate.evidence import (
    DAY,
    HOUR,
    MINUTE,
    NOW,
    SECOND,
    attempt,
    endpoint,
    letter,
    message,
    record,
)

RECORDS: dict[str, Record | None] = {
    "none": None,
    "claimed": record(State.CLAIMED, untouched=10 * SECOND),
    "lease over": record(State.CLAIMED, untouched=10 * MINUTE),
    "lease long over": record(State.CLAIMED, untouched=2 * HOUR),
    "released": record(State.RELEASED, untouched=10 * MINUTE),
    "released long ago": record(State.RELEASED, untouched=2 * HOUR),
    "released by --fix": record(State.RELEASED, message_id="msg_1"),
    "delivered": record(State.DELIVERED),
}

SVIX = {
    "not asked": None,
    "no message": SvixAnswer(None),
    "a message": SvixAnswer(message()),
}

LETTERS: dict[str, tuple[DeadLetter, ...]] = {
    "no letter": (),
    "parked": (letter(),),
    "discarded": (letter(discarded=SECOND),),
    "one of each": (letter(discarded=SECOND), letter()),
}

P = Place
TABLE = {
    # (record, Svix): the place without a letter, with a parked one, with a discarded one
    ("none", "not asked"): (P.UNKNOWN, P.PARKED, P.DISCARDED),
    ("none", "no message"): (P.NEVER_SEEN, P.PARKED, P.DISCARDED),
    ("none", "a message"): (P.UNRECORDED,) * 3,
    ("claimed", "not asked"): (P.BEING_SENT,) * 3,
    ("claimed", "no message"): (P.BEING_SENT,) * 3,
    ("claimed", "a message"): (P.BEING_SENT,) * 3,
    ("lease over", "not asked"): (P.ABANDONED, P.PARKED, P.DISCARDED),
    ("lease over", "no message"): (P.ABANDONED, P.PARKED, P.DISCARDED),
    ("lease over", "a message"): (P.UNSETTLED,) * 3,
    ("lease long over", "not asked"): (P.OVERDUE, P.PARKED, P.DISCARDED),
    ("lease long over", "no message"): (P.OVERDUE, P.PARKED, P.DISCARDED),
    ("lease long over", "a message"): (P.UNSETTLED,) * 3,
    ("released", "not asked"): (P.WAITING, P.PARKED, P.DISCARDED),
    ("released", "no message"): (P.WAITING, P.PARKED, P.DISCARDED),
    ("released", "a message"): (P.UNSETTLED,) * 3,
    ("released long ago", "not asked"): (P.OVERDUE, P.PARKED, P.DISCARDED),
    ("released long ago", "no message"): (P.OVERDUE, P.PARKED, P.DISCARDED),
    ("released long ago", "a message"): (P.UNSETTLED,) * 3,
    ("released by --fix", "not asked"): (P.OVERDUE, P.PARKED, P.DISCARDED),
    ("released by --fix", "no message"): (P.OVERDUE, P.PARKED, P.DISCARDED),
    ("released by --fix", "a message"): (P.UNSETTLED,) * 3,
    ("delivered", "not asked"): (P.UNKNOWN,) * 3,
    ("delivered", "no message"): (P.MISSING,) * 3,
    ("delivered", "a message"): (P.IN_SVIX,) * 3,
}


def found(
    of: Record | None = None, svix: SvixAnswer | None = None, *letters: DeadLetter
) -> Whereabouts:
    return locate(Evidence(now=NOW, record=of, svix=svix, letters=letters))


@pytest.mark.parametrize("letters", LETTERS)
@pytest.mark.parametrize("svix", SVIX)
@pytest.mark.parametrize("of", RECORDS)
def test_every_combination_has_the_place_of_the_table(of: str, svix: str, letters: str) -> None:
    """A letter that is still parked counts, even if another was discarded."""
    column = {"no letter": 0, "parked": 1, "discarded": 2, "one of each": 1}[letters]
    place = found(RECORDS[of], SVIX[svix], *LETTERS[letters]).place
    assert place is TABLE[of, svix][column]


@pytest.mark.parametrize("place", Place)
def test_a_place_counts_in_at_most_one_way(place: Place) -> None:
    """Every event that was seen is in Svix, waits, is stuck, or was discarded."""
    neither = {Place.NEVER_SEEN, Place.DISCARDED, Place.UNKNOWN}
    assert place.in_svix + place.waits + place.stuck == (place not in neither)


@pytest.mark.parametrize("discarded", [HOUR, 10 * SECOND])
def test_an_event_that_came_again_after_it_was_discarded(discarded: timedelta) -> None:
    """An event that is published again with the same id counts like any other."""
    again = found(
        record(State.RELEASED, untouched=MINUTE), SVIX["no message"], letter(discarded=discarded)
    )
    assert again.place is (Place.WAITING if discarded == HOUR else Place.DISCARDED)


@pytest.mark.parametrize(
    ("of", "svix", "since"),
    [
        ("claimed", "not asked", NOW - 10 * SECOND),
        ("released", "no message", NOW - 10 * MINUTE),
        ("released long ago", "no message", NOW - 2 * HOUR),
        ("delivered", "no message", NOW - MINUTE),
        ("delivered", "a message", NOW - MINUTE),
        ("none", "no message", None),
    ],
)
def test_since_is_when_the_event_reached_its_place(
    of: str, svix: str, since: datetime | None
) -> None:
    assert found(RECORDS[of], SVIX[svix]).since == since


def test_since_is_the_first_parking_or_the_discard() -> None:
    earlier, later = letter(parked=DAY), letter(parked=HOUR)
    assert found(None, None, earlier, later).since == NOW - DAY
    assert found(None, None, letter(discarded=MINUTE, parked=DAY)).since == NOW - MINUTE


@pytest.mark.parametrize(
    ("of", "svix", "by"),
    [
        ("claimed", "no message", NOW + 20 * SECOND),  # the lease
        ("released", "no message", NOW + 50 * MINUTE),
        ("released", "a message", NOW + 50 * MINUTE),
        ("released long ago", "a message", None),
        ("released long ago", "no message", None),
        ("delivered", "a message", None),
        ("none", "a message", None),
    ],
)
def test_next_by_is_when_the_next_step_happens_without_help(
    of: str, svix: str, by: datetime | None
) -> None:
    """An event whose redelivery is overdue, or whose record has expired, is not redelivered."""
    assert found(RECORDS[of], SVIX[svix]).next_by == by


R = Remedy


@pytest.mark.parametrize(
    ("of", "svix", "remedies"),
    [
        (RECORDS["released"], "no message", ()),
        (RECORDS["released"], "a message", ()),
        (RECORDS["released long ago"], "a message", (R.FIX,)),
        (record(State.RELEASED, untouched=3 * DAY), "no message", (R.REDRIVE, R.SEEK, R.PUBLISH)),
        (record(State.RELEASED, untouched=8 * DAY), "no message", (R.REDRIVE, R.PUBLISH)),
        (record(State.RELEASED, untouched=40 * DAY), "no message", (R.PUBLISH,)),
        (RECORDS["released by --fix"], "no message", (R.SEEK, R.PUBLISH)),
        (RECORDS["delivered"], "no message", (R.FIX, R.SEEK, R.PUBLISH)),
        (record(State.DELIVERED, untouched=8 * DAY), "no message", (R.FIX, R.PUBLISH)),
        (RECORDS["delivered"], "a message", ()),
        (None, "a message", ()),
        (None, "no message", ()),
    ],
)
def test_only_remedies_that_still_work_are_named(
    of: Record | None, svix: str, remedies: tuple[Remedy, ...]
) -> None:
    """The advice must still work: Pub/Sub keeps an event for 7 days, and then for 31 more."""
    assert found(of, SVIX[svix]).remedies == remedies


def test_the_remedy_for_a_parked_event_is_a_replay() -> None:
    assert found(RECORDS["released"], SVIX["no message"], letter()).remedies == (Remedy.REPLAY,)


def test_the_attempts_are_those_of_the_record() -> None:
    assert found(record(State.RELEASED, attempts=100)).attempts == 100
    assert found(None).attempts == 0


# -- fan-out

OK, BAD, RUNNING = AttemptStatus.SUCCEEDED, AttemptStatus.FAILED, AttemptStatus.UNDER_WAY
SOON = NOW + 5 * MINUTE


@pytest.mark.parametrize(
    ("at", "attempts", "accepted", "standing"),
    [
        (endpoint(), [attempt(OK)], MINUTE, Standing.DELIVERED),
        (
            endpoint(),
            [attempt(BAD, ago=MINUTE), attempt(OK, ago=SECOND)],
            MINUTE,
            Standing.DELIVERED,
        ),
        (endpoint(disabled=True), [attempt(OK)], MINUTE, Standing.DELIVERED),
        (endpoint(), [attempt(RUNNING)], MINUTE, Standing.UNDER_WAY),
        (endpoint(next_attempt=SOON), [attempt(BAD)], MINUTE, Standing.RETRYING),
        (endpoint(next_attempt=SOON, disabled=True), [attempt(BAD)], MINUTE, Standing.FAILED),
        (endpoint(), [attempt(BAD)], MINUTE, Standing.FAILED),
        (endpoint(), [attempt(AttemptStatus.CANCELED)], MINUTE, Standing.CANCELED),
        (endpoint(), [], MINUTE, Standing.QUEUED),
        (endpoint(), [], 2 * HOUR, Standing.NEVER_SENT),
        (endpoint(), [attempt(OK, "ep_2")], 2 * HOUR, Standing.NEVER_SENT),
        (endpoint(disabled=True), [], 2 * HOUR, Standing.DISABLED),
        (endpoint(event_types=frozenset({"other"})), [], 2 * HOUR, Standing.OTHER_TYPES),
        (endpoint(event_types=frozenset({"user.created"})), [], MINUTE, Standing.QUEUED),
        (endpoint(channels=frozenset({"other"})), [], 2 * HOUR, Standing.OTHER_CHANNELS),
        (endpoint(created=MINUTE), [], 2 * HOUR, Standing.CREATED_LATER),
    ],
)
def test_the_standing_of_an_event_at_an_endpoint(
    at: Endpoint, attempts: list[object], accepted: timedelta, standing: Standing
) -> None:
    svix = SvixAnswer(message(accepted), Destinations([at], attempts))  # type: ignore[arg-type]
    there = found(RECORDS["delivered"], svix).standings
    assert [each.standing for each in there] == [standing]


E = endpoint
TYPES = frozenset({"other"})


@pytest.mark.parametrize(
    ("endpoints", "attempts", "fanout"),
    [
        ([], [], Fanout.NO_ENDPOINT),
        ([E(disabled=True), E("ep_2", event_types=TYPES)], [], Fanout.NO_ENDPOINT),
        ([E(), E("ep_2", event_types=TYPES)], [attempt(OK)], Fanout.DELIVERED),
        ([E(), E("ep_2")], [attempt(OK)], Fanout.NEVER_SENT_ON),
        ([E(), E("ep_2")], [attempt(OK), attempt(RUNNING, "ep_2")], Fanout.PENDING),
        ([E(), E("ep_2")], [attempt(OK), attempt(BAD, "ep_2")], Fanout.FAILING),
        ([E(), E("ep_2")], [attempt(BAD)], Fanout.NEVER_SENT_ON),
    ],
)
def test_fanout_is_the_worst_of_the_endpoints(
    endpoints: list[Endpoint], attempts: list[object], fanout: Fanout
) -> None:
    svix = SvixAnswer(message(2 * HOUR), Destinations(endpoints, attempts))  # type: ignore[arg-type]
    where = found(RECORDS["delivered"], svix)
    assert where.fanout is fanout
    assert (Remedy.FIX in where.remedies) is (fanout is Fanout.NEVER_SENT_ON)


def test_an_event_without_a_record_is_published_again() -> None:
    """A reconciliation follows the records, so `--fix` would not find it."""
    svix = SvixAnswer(message(2 * HOUR), Destinations([endpoint()], []))
    where = locate(Evidence(now=NOW, svix=svix))
    assert (where.place, where.fanout) == (Place.UNRECORDED, Fanout.NEVER_SENT_ON)
    assert where.remedies == (Remedy.PUBLISH,)


def test_without_endpoints_and_attempts_the_fanout_is_unknown() -> None:
    assert found(RECORDS["delivered"], SvixAnswer(message(2 * HOUR))).fanout is None
    assert found(RECORDS["delivered"], SvixAnswer(None)).fanout is None
    assert found(RECORDS["delivered"]).fanout is None


@pytest.mark.parametrize(
    ("first", "fanout"),
    [
        (None, Fanout.PENDING),
        (NOW - 4 * MINUTE, Fanout.PENDING),
        (NOW - 5 * MINUTE, Fanout.NEVER_SENT_ON),
    ],
)
def test_a_young_message_is_checked_twice(first: datetime | None, fanout: Fanout) -> None:
    svix = SvixAnswer(message(10 * MINUTE), Destinations([endpoint()], []))
    evidence = Evidence(now=NOW, record=RECORDS["delivered"], svix=svix, first_looked_at=first)
    assert locate(evidence).fanout is fanout
