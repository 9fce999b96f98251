"""End to end: Google's Pub/Sub emulator pushes events, and each must be in Svix once.

The function runs as Cloud Run serves it, on Google's Firestore emulator and the Svix simulator.
"""

import base64
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import httpx
import pytest

from tests.function import Function, Svix, event, function, new_google_project, simulator

PATIENCE = 60.0  # seconds for an answer, and for a message to arrive


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic of the emulator, whose only subscription pushes to the function."""

    url: str
    name: str

    def publish(
        self, *events: dict[str, Any], attributes: Mapping[str, str] | None = None
    ) -> list[str]:
        """Publish events, or the data of events. Returns their message ids."""
        messages = [
            {
                "data": base64.b64encode(json.dumps(e).encode()).decode(),
                "attributes": dict(attributes or {}),
            }
            for e in events
        ]
        answer = httpx.post(
            f"{self.url}/{self.name}:publish", json={"messages": messages}, timeout=PATIENCE
        )
        answer.raise_for_status()
        ids: list[str] = answer.json()["messageIds"]
        return ids


@dataclass(slots=True)
class Stack:
    """Everything that runs."""

    topic: Topic
    function: Function
    svix: Svix
    _earlier: int = field(default=0, init=False)

    def begin(self) -> None:
        """Forget what earlier tests did."""
        self.svix.control.reset()
        self._earlier = len(self.function.lines())

    def lines(self) -> list[dict[str, Any]]:
        """The delivery log since the test began."""
        return self.function.lines()[self._earlier :]


@pytest.fixture(scope="module", params=["wrapped", "unwrapped"])
def running(
    request: pytest.FixtureRequest, firestore_emulator: str, pubsub_emulator: str
) -> Iterator[Stack]:
    """The running stack, for either form of push."""
    project = new_google_project()
    settings = {
        "GOOGLE_CLOUD_PROJECT": project,
        "FIRESTORE_EMULATOR_HOST": firestore_emulator,
        "REQUEST_BUDGET_SECONDS": "30",
    }
    with simulator() as svix, function(svix.url, **settings) as relay:
        url = f"http://{pubsub_emulator}/v1"
        topic = Topic(url, f"projects/{project}/topics/events")
        httpx.put(f"{url}/{topic.name}", timeout=PATIENCE).raise_for_status()
        push: dict[str, Any] = {"pushEndpoint": relay.notifications}
        if request.param == "unwrapped":
            push["noWrapper"] = {"writeMetadata": True}
        subscription = {
            "topic": topic.name,
            "pushConfig": push,
            "ackDeadlineSeconds": 60,
            "retryPolicy": {"minimumBackoff": "1s", "maximumBackoff": "5s"},
        }
        name = f"projects/{project}/subscriptions/webhook-relay"
        httpx.put(f"{url}/{name}", json=subscription, timeout=PATIENCE).raise_for_status()
        yield Stack(topic, relay, svix)
        httpx.delete(f"{url}/{name}", timeout=PATIENCE).raise_for_status()


@pytest.fixture
def stack(running: Stack) -> Stack:
    """The running stack, without anything from earlier tests."""
    running.begin()
    return running


def await_lines(stack: Stack, enough: Callable[[Counter[str]], bool]) -> Counter[str]:
    """Wait until enough outcomes are logged, and return them."""
    give_up_at = time.monotonic() + PATIENCE
    while True:
        outcomes = Counter(line["outcome"] for line in stack.lines())
        if enough(outcomes):
            return outcomes
        assert time.monotonic() < give_up_at, f"only {outcomes}\n{stack.function.server.output()}"
        time.sleep(0.1)  # the log is a file: there is nothing to await


def test_each_published_event_is_in_svix_once(stack: Stack) -> None:
    """An event that is published twice is in Svix once, although its messages have two ids."""
    events = [event(f"evt_{number}", data={"n": 2**70 + number}) for number in range(20)]
    stack.topic.publish(*events)
    stack.topic.publish(*events[:5])
    outcomes = await_lines(stack, lambda seen: seen["delivered"] + seen["duplicate"] >= 25)
    assert outcomes["delivered"] == 20
    held = [json.loads(message["text"]) for message in stack.svix.control.messages()]
    assert sorted(held, key=itemgetter("id")) == sorted(events, key=itemgetter("id"))
    assert stack.svix.control.summary()["messages"] == 20


@pytest.mark.parametrize("running", ["wrapped"], indirect=True)
def test_an_event_that_svix_cannot_take_now_is_redelivered(stack: Stack) -> None:
    """Svix answers 401, which is our own fault. The push is nacked, and Pub/Sub redelivers it.

    The request waits for its whole budget, so this takes ten seconds. One form of push is enough,
    because only the status matters.
    """
    stack.svix.control.inject("status", status=401, body="json")
    stack.topic.publish(event("evt_late"))
    await_lines(stack, lambda seen: seen["misconfigured"] >= 1)
    stack.svix.control.clear_faults()
    await_lines(stack, lambda seen: seen["delivered"] >= 1)
    assert stack.svix.control.summary()["messages"] == 1


def test_poison_is_parked_and_not_redelivered(stack: Stack) -> None:
    """The push is acknowledged as a dead letter, and the events beside it are delivered."""
    stack.topic.publish(event("evt_a"), {"no": "event"}, event("evt_b"))
    outcomes = await_lines(stack, lambda seen: seen.total() >= 3)
    assert outcomes == {"delivered": 2, "malformed": 1}
    (line,) = (line for line in stack.lines() if line["outcome"] == "malformed")
    assert line["status"] == 200
    assert line["dead_letter"]


def test_an_event_in_binary_mode_is_in_svix_once(stack: Stack) -> None:
    """Its attributes are those of the message. Unwrapped, Pub/Sub sends them as headers."""
    names = {"ce-specversion": "1.0", "ce-id": "evt_binary", "ce-type": "user.created"}
    attributes = {**names, "ce-project": "acme", "content-type": "application/json"}
    for _ in range(2):
        stack.topic.publish({"id": "usr_1"}, attributes=attributes)
    outcomes = await_lines(stack, lambda seen: seen.total() >= 2)
    assert outcomes == {"delivered": 1, "duplicate": 1}
    [message] = stack.svix.control.messages()
    assert json.loads(message["text"]) == {
        "specversion": "1.0",
        **event("evt_binary", data={"id": "usr_1"}),
        "datacontenttype": "application/json",
    }


def test_the_log_line_describes_the_push(stack: Stack) -> None:
    """The message id, the subscription and the lag come from Pub/Sub."""
    (message_id,) = stack.topic.publish(event("evt_logged"))
    await_lines(stack, lambda seen: seen["delivered"] >= 1)
    (line,) = stack.lines()
    assert line["message_id"] == message_id
    assert line["subscription"].endswith("/subscriptions/webhook-relay")
    assert line["lag_ms"] >= 0
