"""Creating and finding messages and applications: why each event becomes one message."""

import asyncio
import json
import uuid
from collections import Counter

import pytest

from relay.outcome import Verdict
from relay.sender import SvixSender
from tests.svix.target import Environment, event


async def test_a_message_is_found_by_either_id(svix: Environment) -> None:
    """Its application is created with it."""
    app = svix.new_application()
    text = '{"n": 1e2, "s": "ü", "list": [1, null]}'
    sent = event(app, text=text)
    created = await svix.send(sent)
    assert created.verdict is Verdict.ACCEPTED
    found = await svix.sender.find(sent)
    assert (found.verdict, found.message_id) == (Verdict.ACCEPTED, created.message_id)
    for name in (created.message_id, sent.id):
        shown = (await svix.call("GET", f"app/{app}/msg/{name}")).json()
        assert (shown["id"], shown["eventId"]) == (created.message_id, sent.id)
        assert (shown["eventType"], shown["payload"]) == (sent.type, json.loads(text))


async def test_the_same_key_is_answered_as_before(svix: Environment) -> None:
    """Svix does not compare the bodies."""
    first = event(svix.new_application())
    created = await svix.send(first, "one key")
    again = await svix.send(first, "one key")
    other = await svix.send(event(first.project), "one key")
    assert created.verdict is Verdict.ACCEPTED
    assert created == again == other


async def test_two_calls_of_one_key_at_once_make_one_message(svix: Environment) -> None:
    """The second call waits for the first and gets the same answer."""
    first = event(svix.new_application())
    answers = await asyncio.gather(*(svix.send(first, "one key") for _ in range(4)))
    assert [answer.verdict for answer in answers] == [Verdict.ACCEPTED] * 4
    assert len({answer.message_id for answer in answers}) == 1


async def test_a_key_counts_for_one_token_only(svix: Environment) -> None:
    """With another token of the same environment, only the event id counts."""
    if svix.target.second_token is None:
        pytest.skip("NOT TESTED: SVIX_SECOND_TOKEN is not set")
    sent = event(svix.new_application())
    assert (await svix.send(sent, "one key")).verdict is Verdict.ACCEPTED
    other = SvixSender(svix.target.second_token, svix.target.url, create_applications=True)
    answer = await svix.send(sent, "one key", other)
    await other.close()
    assert (answer.verdict, answer.status, answer.code) == (Verdict.CONFLICT, 409, "conflict")


async def test_a_key_counts_for_one_url_only(svix: Environment) -> None:
    """The query is a part of the URL. With another URL, only the event id counts."""
    app = await svix.create_application()
    body = {"eventId": "evt_1", "eventType": "user.created", "payload": {}}
    path, headers = f"app/{app}/msg", {"idempotency-key": "one key"}
    first = await svix.call("POST", path, json=body, headers=headers)
    again = await svix.call("POST", path, json=body, headers=headers)
    other = await svix.call("POST", f"{path}?with_content=true", json=body, headers=headers)
    assert (first.status, again.status, other.status) == (202, 202, 409)
    assert first.json()["id"] == again.json()["id"]


async def test_only_a_good_answer_is_kept_under_a_key(svix: Environment) -> None:
    """A refused call may be repeated with the same key."""
    app = svix.new_application()
    path, headers = f"app/{app}/msg", {"idempotency-key": "one key"}
    body = {"eventId": "evt_1", "eventType": "user.created", "payload": {}}
    refused = await svix.call("POST", path, json=body, headers=headers)
    body["application"] = {"name": app, "uid": app}
    taken = await svix.call("POST", path, json=body, headers=headers)
    assert (refused.status, taken.status) == (404, 202)


async def test_an_event_id_is_accepted_once(svix: Environment) -> None:
    """A second message with the same id is a conflict, and asking finds the first."""
    sent = event(svix.new_application())
    created = await svix.send(sent)
    again = await svix.send(sent)
    assert (again.verdict, again.status, again.code) == (Verdict.CONFLICT, 409, "conflict")
    assert (await svix.sender.find(sent)).message_id == created.message_id


async def test_of_two_messages_with_one_event_id_at_once_one_is_taken(svix: Environment) -> None:
    """They have different keys, and their application exists."""
    app = await svix.create_application()
    answers = await asyncio.gather(*(svix.send(event(app, "evt_1")) for _ in range(4)))
    verdicts = Counter(answer.verdict for answer in answers)
    assert verdicts == {Verdict.ACCEPTED: 1, Verdict.CONFLICT: 3}


async def test_an_event_id_belongs_to_its_application(svix: Environment) -> None:
    """Two projects may use the same id. Svix's own documentation is contradictory about this."""
    for app in (svix.new_application(), svix.new_application()):
        assert (await svix.send(event(app, "evt_1"))).verdict is Verdict.ACCEPTED


async def test_an_event_that_was_never_sent_is_missing(svix: Environment) -> None:
    """The API answers `not_found`, whether or not the application exists."""
    for app in (await svix.create_application(), svix.new_application()):
        answer = await svix.sender.find(event(app))
        assert (answer.verdict, answer.status, answer.code) == (Verdict.MISSING, 404, "not_found")


async def test_first_messages_race_for_their_application(svix: Environment) -> None:
    """One creates it. Others may get a conflict, although asking finds no message of theirs.

    When they are sent again with the same key, each becomes one message.
    """
    app = svix.new_application()
    sent = {uuid.uuid4().hex: event(app) for _ in range(20)}
    answers = await asyncio.gather(*(svix.send(each, key) for key, each in sent.items()))
    assert {answer.verdict for answer in answers} <= {Verdict.ACCEPTED, Verdict.CONFLICT}
    lost = [
        key for key, answer in zip(sent, answers, strict=True) if answer.verdict is Verdict.CONFLICT
    ]
    for key in lost:
        assert (await svix.sender.find(sent[key])).verdict is Verdict.MISSING
        assert (await svix.send(sent[key], key)).verdict is Verdict.ACCEPTED
    held = (await svix.call("GET", f"app/{app}/msg")).json()["data"]
    assert Counter(each["eventId"] for each in held) == dict.fromkeys(
        (each.id for each in sent.values()), 1
    )


async def test_a_message_needs_its_application(svix: Environment) -> None:
    """If applications are not created, the relay rejects an event of an unknown project."""
    sender = SvixSender(svix.target.token, svix.target.url, create_applications=False)
    answer = await svix.send(event(svix.new_application()), sender=sender)
    taken = await svix.send(event(await svix.create_application()), sender=sender)
    await sender.close()
    assert (answer.verdict, answer.status) == (Verdict.REJECTED, 404)
    assert answer.code == "unknown_application"
    assert taken.verdict is Verdict.ACCEPTED


async def test_a_message_creates_an_application_only_with_the_uid_in_the_path(
    svix: Environment,
) -> None:
    """If the application exists, the one in the message is ignored."""
    there, missing = await svix.create_application(), svix.new_application()
    body = {"eventType": "user.created", "payload": {}, "application": {"name": "x", "uid": "x"}}
    taken = await svix.call("POST", f"app/{there}/msg", json=body)
    refused = await svix.call("POST", f"app/{missing}/msg", json=body)
    assert (taken.status, refused.status) == (202, 422)
    assert refused.json()["detail"][0]["loc"] == ["body", "application", "uid"]


async def test_a_deleted_application_is_created_again(svix: Environment) -> None:
    """Its messages are gone, so its event ids are free."""
    sent = event(svix.new_application())
    first = await svix.send(sent)
    assert (await svix.call("DELETE", f"app/{sent.project}")).status == 204
    assert (await svix.sender.find(sent)).verdict is Verdict.MISSING
    again = await svix.send(sent)
    assert again.verdict is Verdict.ACCEPTED
    assert again.message_id != first.message_id
