"""How far back a page of a listing by time reaches."""

from datetime import UTC, datetime, timedelta

from local.svix import ids, listing
from local.svix.listing import Query


def test_a_page_reaches_ninety_days_back() -> None:
    """An iterator leads on from there. With `after`, a page begins where `after` says."""
    now = datetime.now(UTC)
    old, young = (ids.new("msg_", now - timedelta(days=days)) for days in (91, 89))
    for query, expected in [
        (Query(), [young]),
        (Query(iterator=young), [old]),
        (Query(before=now), [young]),
        (Query(after=now - timedelta(days=100)), [young, old]),
    ]:
        assert listing.by_time([old, young], "msg_", query, now).ids == expected
