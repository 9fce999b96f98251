"""Listings: their pages, their order, and where their iterators lead."""

import asyncio
import itertools
from datetime import datetime, timedelta
from typing import Any

import pytest

from relay.outcome import Verdict
from tests.svix.target import PREFIX, Environment, Target, event

MESSAGES = 620
APPLICATIONS = 310
PAGE = 250  # Svix's largest


@pytest.fixture(scope="session")
def listed(target: Target, made: tuple[set[str], set[str]]) -> str:
    """An application with many messages."""

    async def fill() -> str:
        environment = Environment.open(target, *made)
        app = await environment.create_application()
        sent = (environment.send(event(app, f"evt_{n}")) for n in range(MESSAGES))
        answers = await asyncio.gather(*sent)
        await environment.close()
        assert {answer.verdict for answer in answers} == {Verdict.ACCEPTED}
        return app

    return asyncio.run(fill())


async def page(svix: Environment, app: str, **query: Any) -> dict[str, Any]:
    """One page of an application's messages."""
    query = {"limit": PAGE, "with_content": "false"} | query
    answer = await svix.call("GET", f"app/{app}/msg", query=query)
    assert answer.status == 200, answer.body
    shown: dict[str, Any] = answer.json()
    return shown


def ids(shown: dict[str, Any]) -> list[str]:
    """The ids of a page's messages."""
    return [message["id"] for message in shown["data"]]


async def pages(svix: Environment, app: str) -> list[dict[str, Any]]:
    """All of an application's pages, newest first."""
    walked = [await page(svix, app)]
    while not walked[-1]["done"]:
        walked.append(await page(svix, app, iterator=walked[-1]["iterator"]))
    return walked


async def test_messages_are_listed_newest_first(svix: Environment, listed: str) -> None:
    """The pages have each message once. The ids are in the order in which Svix took them."""
    walked = await pages(svix, listed)
    assert [len(each["data"]) for each in walked] == [PAGE, PAGE, MESSAGES - 2 * PAGE]
    everything = [message for each in walked for message in each["data"]]
    assert {message["eventId"] for message in everything} == {f"evt_{n}" for n in range(MESSAGES)}
    names = [message["id"] for message in everything]
    assert names == sorted(names, reverse=True)
    times = [datetime.fromisoformat(message["timestamp"]) for message in everything]
    assert all(a > b - timedelta(seconds=1) for a, b in itertools.pairwise(times))
    assert {str(message["payload"]) for message in everything} == {"{}"}


async def test_our_view_sees_every_message(svix: Environment, listed: str) -> None:
    """It lists the messages back to the given time, and none before that."""
    long_ago = datetime.fromisoformat("2020-01-01T00:00:00Z")
    seen = [message async for message in svix.view.messages(listed, long_ago)]
    assert {message.event_id for message in seen} == {f"evt_{n}" for n in range(MESSAGES)}
    since = seen[100].accepted_at
    later = [message async for message in svix.view.messages(listed, since)]
    assert {message.id for message in later} >= {message.id for message in seen[:101]}
    after_all = seen[0].accepted_at + timedelta(days=1)
    assert [message async for message in svix.view.messages(listed, after_all)] == []


async def test_a_previous_iterator_leads_back(svix: Environment, listed: str) -> None:
    """It leads to the previous page, in the same order. Before the first page there is nothing."""
    first, second, third = await pages(svix, listed)
    assert ids(await page(svix, listed, iterator=third["prevIterator"])) == ids(second)
    assert ids(await page(svix, listed, iterator=second["prevIterator"])) == ids(first)
    assert not (await page(svix, listed, iterator=first["prevIterator"]))["data"]


async def test_before_leaves_out_what_is_newer(svix: Environment, listed: str) -> None:
    """Apart from that, the page has the usual order."""
    first, *_ = await pages(svix, listed)
    before = datetime.fromisoformat(first["data"][100]["timestamp"])
    older = await page(svix, listed, before=before.isoformat())
    assert len(older["data"]) == PAGE
    assert all(datetime.fromisoformat(m["timestamp"]) <= before for m in older["data"])
    assert ids(older)[100:] == ids(await page(svix, listed, iterator=ids(older)[99]))[:150]


async def test_after_begins_at_the_oldest_page_and_its_iterator_leads_nowhere(
    svix: Environment, listed: str
) -> None:
    """The first page is the oldest one, and its iterator leads to an empty page.

    So the relay's commands never use `after`.
    """
    walked = await pages(svix, listed)
    everything = [message for each in walked for message in each["data"]]
    after = datetime.fromisoformat(everything[-100]["timestamp"])
    oldest = await page(svix, listed, after=after.isoformat())
    times = [datetime.fromisoformat(m["timestamp"]) for m in oldest["data"]]
    assert len(times) == PAGE
    assert min(times) >= after - timedelta(milliseconds=10)
    assert everything[0]["id"] not in ids(oldest)
    assert not oldest["done"]
    led_to = await page(svix, listed, after=after.isoformat(), iterator=oldest["iterator"])
    assert (led_to["data"], led_to["done"]) == ([], True)


async def test_an_application_without_messages_has_an_empty_page(svix: Environment) -> None:
    """The page is the last one and has no iterator."""
    shown = await page(svix, await svix.create_application())
    assert (shown["data"], shown["iterator"], shown["done"]) == ([], None, True)


@pytest.mark.parametrize(
    ("query", "loc"),
    [
        ({"limit": PAGE + 1}, ["query", "limit", "limit"]),
        ({"iterator": "x"}, ["query", "iterator", "__all__"]),
    ],
)
async def test_a_wrong_page_is_refused(
    svix: Environment, query: dict[str, Any], loc: list[str]
) -> None:
    """The answer is 422 and names the parameter."""
    app = await svix.create_application()
    answer = await svix.call("GET", f"app/{app}/msg", query=query)
    assert (answer.status, answer.json()["detail"][0]["loc"]) == (422, loc)


async def test_applications_are_listed_once_each(svix: Environment) -> None:
    """The list has several pages, and may contain other applications."""
    await asyncio.gather(*(svix.create_application() for _ in range(APPLICATIONS)))
    seen: list[str] = []
    query: dict[str, Any] = {"limit": PAGE}
    while True:
        shown = (await svix.call("GET", "app", query=query)).json()
        seen += [application["uid"] for application in shown["data"]]
        if shown["done"]:
            break
        query["iterator"] = shown["iterator"]
    ours = [uid for uid in seen if uid and uid.startswith(PREFIX)]
    assert len(ours) == len(set(ours)) >= APPLICATIONS
