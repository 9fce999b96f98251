"""An event in each form of body is in Svix once. A push that can never succeed is parked."""

import json
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.bodies.conftest import Relay
from tests.bodies.forms import FORMS, PUSHED, binary, event, metadata, push, request
from tests.function import JSON, ROOT, wrapped

EVENTARC = {  # https://cloud.google.com/eventarc/docs/cloudevents#pubsub
    "ce-specversion": "1.0",
    "ce-id": "3103425958877813",
    "ce-type": "google.cloud.pubsub.topic.v1.messagePublished",
    "ce-source": "//pubsub.googleapis.com/projects/p/topics/events",
    "ce-time": "2026-11-24T09:15:01.000Z",
    "content-type": "application/json",
}


@pytest.mark.parametrize("form", FORMS)
def test_an_event_in_each_form_is_in_svix_once(relay: Relay, form: str) -> None:
    """When it comes again in the same form, it is a duplicate with the same text."""
    sent = event(f"evt_{FORMS.index(form)}_{relay.run}")
    answers = [relay.post(*request(form, sent)) for _ in range(2)]
    assert [answer.outcome for answer in answers] == [(200, "delivered"), (200, "duplicate")]
    assert "remark" not in answers[1].body
    [message] = relay.held(sent["id"])
    assert json.loads(message["text"]) == sent
    assert message["tags"] == [sent["data"]["id"]]


def test_one_event_in_all_six_forms_is_one_message(relay: Relay) -> None:
    """The event's id decides, not the form in which it comes."""
    sent = event(f"evt_six_{relay.run}")
    answers = [relay.post(*request(form, sent)) for form in FORMS]
    assert Counter(answer.outcome for answer in answers) == {
        (200, "delivered"): 1,
        (200, "duplicate"): 5,
    }
    assert len(relay.held(sent["id"])) == 1


def test_the_readmes_commands_get_the_answers_that_the_readme_names(
    relay: Relay, tmp_path: Path
) -> None:
    """The commands run word for word, but with this function's URL and a project of the test."""
    section = (ROOT / "README.md").read_text().partition("## Bodies\n")[2]
    [commands] = re.findall(r"```bash\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)
    assert len(re.findall(r"^# \d|; \d", commands, re.MULTILINE)) == len(FORMS)
    project = f"readme-{relay.run}"
    script = commands.replace("acme", project)
    script = script.replace("http://127.0.0.1:8080/notifications", relay.function.notifications)
    said = subprocess.run(  # noqa: S603 - our own command
        ["/bin/bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    outcomes = re.findall(r'"outcome":"(\w+)","event_id":"(\w+)"', said.stdout)
    assert outcomes == [
        ("delivered", "evt_1"),
        *[("duplicate", "evt_1")] * 3,
        ("delivered", "evt_2"),
        ("delivered", "evt_3"),
    ]
    held = relay.svix.control.messages(project)
    assert sorted(message["event_id"] for message in held) == ["evt_1", "evt_2", "evt_3"]
    payloads = [json.loads(message["text"]) for message in held]
    assert [payload["data"] for payload in payloads] == [{"id": "usr_1"}] * 3


@pytest.mark.parametrize("form", ["structured", "binary"])
def test_eventarcs_push_is_a_wrapped_push_and_nothing_else(relay: Relay, form: str) -> None:
    """Its `ce-` headers describe the envelope. The event's are in the message's attributes."""
    sent = event(f"evt_eventarc_{form}_{relay.run}")
    body, _ = request("wrapped" if form == "structured" else "binary wrapped", sent)
    assert relay.post(body, PUSHED | EVENTARC).outcome == (200, "delivered")
    [message] = relay.held(sent["id"])
    assert json.loads(message["text"]) == sent


def test_eventarcs_headers_are_not_taken_for_the_events_names(relay: Relay) -> None:
    """A message that is not an event is parked without the envelope's names."""
    answer = relay.post(wrapped(b"{}", f"eventarc.{relay.run}"), PUSHED | EVENTARC)
    assert answer.outcome == (200, "malformed")
    letter = relay.parked(answer)
    assert (letter.event_id, letter.event_type, letter.project) == (None, None, None)


@pytest.mark.parametrize("more", [{}, metadata("9")], ids=["without", "with"])
def test_poison_in_an_unwrapped_push_is_parked(relay: Relay, more: dict[str, str]) -> None:
    """It is acknowledged, with and without metadata, so that it is not redelivered for ever."""
    poison = f'{{"id":"evt_poison_{len(more)}_{relay.run}","type":"user.created","x":'.encode()
    answer = relay.post(poison, JSON | PUSHED | more)
    assert answer.outcome == (200, "malformed")
    assert relay.parked(answer).data == poison
    assert (
        relay.post(poison, JSON | PUSHED | more).body["dead_letter"] == answer.body["dead_letter"]
    )


@pytest.mark.parametrize("form", ["wrapped", "unwrapped", "by hand"])
def test_a_body_that_is_itself_an_event_is_structured(relay: Relay, form: str) -> None:
    """The attributes do not change it."""
    sent = event(f"evt_itself_{form.replace(' ', '_')}_{relay.run}")
    attributes, _ = binary(event(f"evt_beside_{relay.run}"))
    text = json.dumps(sent).encode()
    match form:
        case "wrapped":
            answer = relay.post(push(text, attributes), JSON | PUSHED)
        case "unwrapped":
            answer = relay.post(text, PUSHED | attributes)
        case _:
            answer = relay.post(text, attributes)
    assert answer.outcome == (200, "delivered")
    [message] = relay.held(sent["id"])
    assert json.loads(message["text"]) == sent
    assert not relay.held(f"evt_beside_{relay.run}")
