"""A parked event is found by its names, and a replay reads it like the push."""

import contextlib
import json
import random
import sqlite3

import pytest
from google.cloud.firestore import Client

from relay.envelope import EVENT_LIMIT
from tests.bodies.conftest import Relay
from tests.bodies.forms import PUSHED, PUSHES, event, push, request
from tests.function import JSON, wrapped

NAMED = {"id", "type", "project"}


def malformed(event_id: str) -> dict[str, tuple[bytes, dict[str, str], set[str]]]:
    """Malformed pushes: the body, the headers, and the names that can be read."""
    names = f'"id":"{event_id}","type":"user.created","project":"acme"'
    attributes = {"ce-specversion": "1.0", "ce-id": event_id, "ce-project": "acme"}
    broken = f"{{{names},".encode()
    return {
        "breaks off, wrapped": (wrapped(broken, event_id), JSON | PUSHED, NAMED),
        "breaks off, unwrapped": (broken, PUSHED, NAMED),
        "NaN before the names": (f'{{"n":NaN,{names}}}'.encode(), PUSHED, NAMED),
        "no type": (
            wrapped(json.dumps({"id": event_id, "project": "acme"}).encode(), event_id),
            JSON | PUSHED,
            NAMED - {"type"},
        ),
        "a type twice": (f'{{{names},"type":"x"}}'.encode(), PUSHED, NAMED - {"type"}),
        "binary, wrapped": (push(b"{}", attributes, event_id), JSON | PUSHED, NAMED - {"type"}),
        "binary, unwrapped": (b"{}", PUSHED | attributes, NAMED - {"type"}),
        "binary, data that is no base64": (
            push(b"{}", attributes, event_id).replace(b'"e30="', b'"!"'),
            JSON | PUSHED,
            NAMED - {"type"},
        ),
    }


@pytest.mark.parametrize("what", list(malformed("")))
def test_a_malformed_push_is_found_by_the_names_that_could_be_read(relay: Relay, what: str) -> None:
    """`dead-letters list` and `inspect` find it."""
    event_id = f"evt_found_{list(malformed('')).index(what)}_{relay.run}"
    body, headers, named = malformed(event_id)[what]
    answer = relay.post(body, headers)
    assert answer.outcome == (200, "malformed")
    assert (answer.body["event_id"], answer.body["project"]) == (event_id, "acme")
    listed = relay.commands.json(
        "dead-letters", "list", "--project", "acme", "--reason", "malformed"
    )
    [found] = [each for each in listed["letters"] if each["id"] == answer.body["dead_letter"]]
    assert (found["event_id"], found["project"]) == (event_id, "acme")
    assert found["event_type"] == ("user.created" if "type" in named else None)
    where = relay.commands.json("inspect", event_id, "--project", "acme", status=1)
    assert where["place"] == "parked"


@pytest.mark.parametrize("form", PUSHES)
def test_a_replay_reads_a_letter_like_the_push(relay: Relay, form: str) -> None:
    """Svix refused the event. After the replay it is in Svix once, unchanged, and has no letter."""
    sent = event(f"evt_replay_{PUSHES.index(form)}_{relay.run}")
    relay.svix.control.inject("status", status=422, body="invalid", method="POST", times=1)
    answer = relay.post(*request(form, sent))
    assert answer.outcome == (200, "rejected")
    assert not relay.held(sent["id"])
    replayed = relay.commands("dead-letters", "replay", answer.body["dead_letter"])
    assert replayed.exit_code == 0, replayed.output
    [message] = relay.held(sent["id"])
    assert json.loads(message["text"]) == sent
    assert message["tags"] == [sent["data"]["id"]]
    assert relay.letter(answer.body["dead_letter"]) is None
    again = relay.post(*request(form, sent))
    assert (again.outcome, again.body.get("remark")) == ((200, "duplicate"), None)


def test_a_damaged_letter_is_named_by_every_command(relay: Relay) -> None:
    """`show` and `replay` name the letter and the missing part. They never use half a letter."""
    data = random.Random(9).randbytes(EVENT_LIMIT + 1)  # noqa: S311 - does not compress
    answer = relay.post(wrapped(data, f"damaged.{relay.run}"), JSON | PUSHED)
    letter_id = answer.body["dead_letter"]
    damage = _damage(relay, letter_id)
    for command in ("show", "replay"):
        said = relay.commands("dead-letters", command, letter_id)
        assert said.exit_code == 1
        assert (letter_id if command == "show" else letter_id[:12]) in said.output
        assert damage in said.output
    given_up = relay.commands("dead-letters", "discard", letter_id, "--reason", "damaged")
    assert given_up.exit_code == 0
    assert relay.parked(answer).discarded == "damaged"


def _damage(relay: Relay, letter_id: str) -> str:
    """Damage a stored letter. Returns a part of the message that must report it."""
    if "LEDGER" in relay.settings:
        path = relay.settings["LEDGER"].removeprefix("sqlite:")
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            half = "update dead_letters set content = substr(content, 1, 1000000) where id = ?"
            assert database.execute(half, (letter_id,)).rowcount == 1
        return "can't be decompressed"
    with contextlib.closing(Client(relay.settings["GOOGLE_CLOUD_PROJECT"])) as firestore:
        parts = firestore.collection("dead_letter_parts").list_documents()
        [second] = [p for p in parts if p.id.startswith(letter_id) and p.id.endswith("-2")]
        second.delete()
    return "part 2 of 3 is missing"
