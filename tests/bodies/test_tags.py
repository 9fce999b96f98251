"""The tags of a Svix message, by which Svix's portal filters."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.bodies.conftest import Relay
from tests.bodies.forms import FORMS, event, request
from tests.function import TOKEN, function

PATHS = "data.id,data.user,data.sim.id,project,type"


@pytest.fixture(scope="module")
def tagging(running: Relay) -> Iterator[Relay]:
    """A function on the same ledger, with more tags in its settings."""
    environment = running.settings | {"EVENT_TAGS": PATHS}
    with function(running.svix.url, **environment) as started, httpx.Client(timeout=60) as client:
        yield Relay(started, running.svix, environment, client)


def tags(relay: Relay, event_id: str, data: Any) -> list[str]:
    """Deliver an event with this data, and return its tags."""
    assert relay.post(*request("wrapped", event(event_id, data=data))).outcome == (200, "delivered")
    [message] = relay.held(event_id)
    assert json.loads(message["text"])["data"] == data
    found: list[str] = message["tags"]
    return found


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        ("sim_1", True),
        ("A.b-9_", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("", False),
        ("ada@example.com", False),
        ("a b", False),
        ("é", False),
        (7, False),
        (None, False),
        (["sim_1"], False),
        ({"id": "sim_1"}, False),
    ],
)
def test_a_value_that_svix_takes_becomes_a_tag_and_another_is_left_out(
    relay: Relay, value: Any, *, fits: bool
) -> None:
    """An event must not be lost because of its tags."""
    name = f"evt_tag_{hash(json.dumps(value)):x}_{relay.run}"
    assert tags(relay, name, {"id": value}) == ([value] if fits else [])


@pytest.mark.parametrize("data", [None, [], "sim_1", {}])
def test_an_event_without_the_tagged_value_has_no_tags(relay: Relay, data: Any) -> None:
    """Its data may be of any type."""
    assert tags(relay, f"evt_untagged_{json.dumps(data).encode().hex()}_{relay.run}", data) == []


def test_the_setting_says_which_values_are_tags(tagging: Relay) -> None:
    """The tags are in the setting's order. Each occurs once, and there are at most five."""
    data = {"id": "sub_1", "user": "usr_1", "sim": {"id": "sim_1"}}
    found = tags(tagging, f"evt_tags_{tagging.run}", data)
    assert found == ["sub_1", "usr_1", "sim_1", "acme", "user.created"]
    same = {"id": "acme", "user": 7, "sim": {"id": "acme"}}
    assert tags(tagging, f"evt_few_{tagging.run}", same) == ["acme", "user.created"]


@pytest.mark.parametrize("form", FORMS)
async def test_a_message_is_found_by_its_tag(tagging: Relay, form: str) -> None:
    """The portal asks Svix in this way for everything about one SIM."""
    sim = f"sim_{FORMS.index(form)}_{tagging.run}"
    sent = event(f"evt_by_{sim}", data={"id": "sub_1", "sim": {"id": sim}})
    assert tagging.post(*request(form, sent)).outcome == (200, "delivered")
    async with httpx.AsyncClient() as client:
        answer = await client.get(
            f"{tagging.svix.url}/api/v1/app/acme/msg",
            params={"tag": sim},
            headers={"Authorization": f"Bearer {TOKEN}"},
        )
    assert [message["eventId"] for message in answer.json()["data"]] == [sent["id"]]
