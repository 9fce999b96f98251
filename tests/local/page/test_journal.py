"""The journal of one stack: counts, fates, the chart, and the life of an event."""

import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from local.behaviour import Call
from local.endpoints import Webhook
from local.messages import Message, Push
from local.page.journal import CHART_SECONDS, SERIES, Journal, Letters
from local.page.lane import RELAY
from local.page.verdict import Fate
from local.stack import Instance, Stack
from local.svix.store import StoredMessage

KEY = ("acme", "evt_1")


class Book:
    """A journal of a stack that never starts. The test writes what happens in it."""

    def __init__(self, directory: Path) -> None:
        self.stack = Stack(RELAY.program, directory)
        self.journal = Journal()
        self.letters = Letters()

    def publish(self, event_id: str = "evt_1") -> Message:
        message = Message(len(self.stack.messages), b"{}", "acme", event_id)
        self.stack.messages.append(message)
        self.journal.published(message)
        return message

    def push(self, message: Message, status: int | None) -> None:
        now = time.time()
        push = Push(1, now, now, status)
        message.pushes.append(push)
        self.stack.answered.append((message, push))

    def svix_accepts(self, message_id: str, event_id: str = "evt_1") -> None:
        now = datetime.now(UTC)
        stored = StoredMessage("acme", message_id, event_id, "a.b", "{}", None, (), now)
        self.stack.simulator.store.messages.append(stored)
        self.stack.simulator.calls.append(Call(time.monotonic(), "POST", "/x/msg", 202))

    def customer_gets(self, message_id: str, status: int = 204) -> None:
        webhook = Webhook("/acme", message_id, b"{}", {}, time.time(), status)
        self.stack.endpoints.received.append(webhook)

    def judge(self) -> Fate:
        self.journal.poll(self.stack, self.letters)
        return self.journal.events[KEY].fate


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path)


def test_an_event_is_on_its_way_until_its_customer_has_it(book: Book) -> None:
    message = book.publish()
    assert book.judge() is Fate.ON_ITS_WAY
    book.svix_accepts("msg_1")
    book.push(message, 200)
    assert book.judge() is Fate.ON_ITS_WAY
    book.customer_gets("msg_1", status=500)
    assert book.judge() is Fate.ON_ITS_WAY
    assert book.journal.to_send_on == 1
    book.customer_gets("msg_1")
    assert book.judge() is Fate.ONCE
    book.customer_gets("msg_1")
    assert book.judge() is Fate.ONCE, "a repeated webhook has the same id and does not count"
    assert book.journal.verdict()["once"] == 1
    assert book.journal.received == 1


def test_the_typical_time_needs_half_of_the_events_and_the_slowest_time_needs_all(
    book: Book,
) -> None:
    """The slowest event may be one that is still on its way."""
    names = ["evt_1", "evt_2", "evt_3"]
    shown = []
    for name in names:
        book.publish(name)
    for name in names:
        book.svix_accepts(f"msg_{name}", name)
        book.customer_gets(f"msg_{name}")
        book.judge()
        verdict = book.journal.verdict()
        shown.append([verdict[time] is not None for time in ("typical", "slowest")])
    assert shown == [[False, False], [True, False], [True, True]]


def test_an_event_with_two_messages_in_svix_counts_as_twice(book: Book) -> None:
    book.publish()
    for message_id in ("msg_1", "msg_2"):
        book.svix_accepts(message_id)
        book.customer_gets(message_id)
    assert book.judge() is Fate.TWICE


def test_an_event_is_lost_if_it_is_acknowledged_and_nowhere_to_be_found(book: Book) -> None:
    message = book.publish()
    book.push(message, 200)
    assert book.judge() is Fate.ON_ITS_WAY, "the dead letters were not read yet"
    assert KEY in book.journal.unexplained
    book.letters = Letters(time.time())
    assert book.judge() is Fate.LOST


@pytest.mark.parametrize("found", ["event", "message"])
def test_an_event_among_the_dead_letters_is_parked(book: Book, found: str) -> None:
    """An event is found by its names, a malformed body by its message's id."""
    message = book.publish()
    book.push(message, 200)
    events = frozenset({KEY}) if found == "event" else frozenset()
    messages = frozenset({"0"}) if found == "message" else frozenset()
    book.letters = Letters(time.time(), events, messages)
    assert book.judge() is Fate.PARKED
    assert not book.journal.unexplained


def test_an_event_in_the_dead_letter_topic_is_parked(book: Book) -> None:
    message = book.publish()
    book.push(message, 500)
    message.is_dead_letter = True
    assert book.judge() is Fate.PARKED


def test_an_event_with_a_message_still_to_push_is_not_lost(book: Book) -> None:
    first, _second = book.publish(), book.publish()
    book.push(first, 200)
    book.letters = Letters(time.time())
    assert book.judge() is Fate.ON_ITS_WAY
    assert book.journal.verdict()["published"] == 1


def test_calls_are_counted_once(book: Book) -> None:
    calls = book.stack.simulator.calls
    calls.append(Call(time.monotonic(), "POST", "/api/v1/app/acme/msg", 202))
    book.journal.poll(book.stack, book.letters)
    calls.append(Call(time.monotonic(), "POST", "/api/v1/app/acme/msg", 429))
    calls.append(Call(time.monotonic(), "POST", "/api/v1/app/acme/msg", 500))
    calls.append(Call(time.monotonic(), "GET", "/api/v1/app/acme/msg/evt_1", 200))
    for _ in range(2):
        book.journal.poll(book.stack, book.letters)
    assert book.journal.calls == {"accepted": 1, "refused": 1, "failed": 1}


def test_the_chart_has_a_row_for_each_second(book: Book) -> None:
    message = book.publish()
    message.published_at -= 5
    book.journal.published(message)
    chart = book.journal.chart()
    assert len(chart) == CHART_SECONDS
    published = [row[SERIES.index("published")] for row in chart]
    assert sum(published) == 1, "the current second is shown"


def test_the_life_of_an_event_in_the_order_of_time(book: Book) -> None:
    message = book.publish()
    message.published_at -= 1
    at = time.time() - 0.5
    line = '{"severity": "DEBUG", "message": "step", "step": "claimed", "at": %f, %s}'
    names = '"event_id": "evt_1", "project": "acme"'
    book.journal.logged(Instance(7, 0), (line % (at, names)).encode())
    book.push(message, None)
    book.push(message, 200)
    book.svix_accepts("msg_1")
    book.journal.poll(book.stack, book.letters)
    life = book.journal.life(KEY)
    assert life is not None
    assert [(where, what) for _, where, what in life["entries"]] == [
        ("topic", "published as message 0"),
        ("instance 7", "claimed"),
        ("topic", "pushed to instance 1"),
        ("topic", "nacked: the connection broke"),
        ("topic", "pushed to instance 1, attempt 2"),
        ("topic", "acknowledged (200)"),
        ("Svix", "accepted as msg_1"),
    ]
    assert book.journal.life(("acme", "another")) is None


def test_messages_that_were_not_published_here_are_counted_apart(book: Book) -> None:
    book.svix_accepts("msg_1")
    book.journal.poll(book.stack, book.letters)
    assert book.journal.verdict()["by_hand"] == 1
    assert book.journal.verdict()["published"] == 0
