"""What Svix refuses, the form of its errors, and how the relay classifies them."""

import json
import string
from typing import Any

import pytest

from relay.outcome import Verdict
from relay.sender import SvixSender
from tests.svix.target import Environment, event

ALPHABET = string.ascii_letters + string.digits + "-_."
LONGEST = (ALPHABET * 4)[:256]
MIB = 1024 * 1024


@pytest.mark.parametrize("name", ["x", LONGEST, "...", "-", "_"])
async def test_every_name_that_we_let_through_is_taken(svix: Environment, name: str) -> None:
    """The relay's rule for names is not wider than Svix's, and each name finds its message."""
    app = svix.new_application()
    sent = event(app, name, type=name)
    assert (await svix.send(sent)).verdict is Verdict.ACCEPTED
    assert (await svix.sender.find(sent)).verdict is Verdict.ACCEPTED


async def test_an_application_may_have_the_longest_name(svix: Environment) -> None:
    """It has 256 characters, with every character that is allowed."""
    app = svix.new_application()
    app += LONGEST[len(app) :]
    svix.applications.add(app)
    sent = event(app)
    assert (await svix.send(sent)).verdict is Verdict.ACCEPTED
    assert (await svix.sender.find(sent)).verdict is Verdict.ACCEPTED


WRONG: dict[str, tuple[dict[str, Any], list[str] | None]] = {
    "event id empty": ({"eventId": ""}, ["body", "uid", "__all__"]),
    "event id too long": ({"eventId": "x" * 257}, ["body", "uid", "__all__"]),
    "event id with a space": ({"eventId": "a b"}, ["body", "uid", "__all__"]),
    "event id with an umlaut": ({"eventId": "ü"}, ["body", "uid", "__all__"]),
    "event id like a message's": ({"eventId": "msg_1"}, ["body", "uid", "__all__"]),
    "event type with a slash": ({"eventType": "a/b"}, ["body", "event_type", "__all__"]),
    "event type too long": ({"eventType": "x" * 257}, ["body", "event_type", "__all__"]),
    "event type missing": ({"eventType": ...}, None),
    "payload a list": ({"payload": [1]}, ["body", "payload"]),
    "payload a string": ({"payload": "x"}, ["body", "payload"]),
    "payload missing": ({"payload": ...}, None),
}


@pytest.mark.parametrize(("change", "loc"), WRONG.values(), ids=WRONG.keys())
async def test_svix_names_the_wrong_field_of_a_message(
    svix: Environment, change: dict[str, Any], loc: list[str] | None
) -> None:
    """The answer is 422, and its detail names the wrong field.

    The relay parks such an event.
    """
    body = {"eventId": "evt_1", "eventType": "user.created", "payload": {}} | change
    body = {name: value for name, value in body.items() if value is not ...}
    answer = await svix.call("POST", f"app/{await svix.create_application()}/msg", json=body)
    assert answer.status == 422
    [detail] = answer.json()["detail"]
    assert detail.keys() == {"loc", "msg", "type"}
    assert loc is None or detail["loc"] == loc


@pytest.mark.parametrize(
    "body",
    [b"", b'{"eventType": "a"', b"[]", b'{"eventType":"a","payload":{"n":NaN}}', b"\xff"],
    ids=["empty", "broken off", "a list", "NaN", "not UTF-8"],
)
async def test_a_body_that_is_not_json_is_refused_like_a_wrong_field(
    svix: Environment, body: bytes
) -> None:
    """The answer is 422, with details as for a wrong field."""
    answer = await svix.call("POST", f"app/{await svix.create_application()}/msg", body=body)
    assert (answer.status, answer.json()["detail"][0]["loc"][0]) == (422, "body")


async def test_our_sender_reads_a_refusal(svix: Environment) -> None:
    """The sender classifies the answer as rejected.

    It keeps the name of the wrong field, but nothing of the event.
    """
    answer = await svix.send(event(svix.new_application(), "a b"))
    assert (answer.verdict, answer.status) == (Verdict.REJECTED, 422)
    assert answer.locs == ("body.uid.__all__",)


def padded(size: int) -> str:
    """An event's text of `size` bytes, without spaces that Svix could remove."""
    around = len('{"data":""}')
    return json.dumps({"data": "x" * (size - around)}, separators=(",", ":"))


async def test_how_large_an_event_may_be(svix: Environment) -> None:
    """The hosted Svix takes events of 1 MiB, and the open-source one requests of 2 MiB."""
    over_one = Verdict.REJECTED if svix.target.is_hosted else Verdict.ACCEPTED
    expected = {MIB: Verdict.ACCEPTED, MIB + 1: over_one, 2 * MIB: Verdict.REJECTED}
    for size, verdict in expected.items():
        app = svix.new_application()
        answer = await svix.send(event(app, text=padded(size)))
        assert answer.verdict is verdict, size
        if verdict is Verdict.REJECTED:
            assert (answer.status, answer.code) == (413, "payload_too_large")


async def test_a_wrong_token_does_not_reject_the_event(svix: Environment) -> None:
    """Svix answers 401 `authentication_failed`, and the verdict is misconfigured."""
    sender = SvixSender("testsk_wrong", svix.target.url, create_applications=True)
    answer = await svix.send(event(svix.new_application()), sender=sender)
    await sender.close()
    assert (answer.verdict, answer.status) == (Verdict.MISCONFIGURED, 401)
    assert answer.code == "authentication_failed"


async def test_an_unknown_path_is_not_a_missing_message(svix: Environment) -> None:
    """Its 404 has no code `not_found`, so the relay knows that it is not the API's."""
    sender = SvixSender(svix.target.token, f"{svix.target.url}/nowhere", create_applications=True)
    sent = event(svix.new_application())
    answers = [await svix.send(sent, sender=sender), await sender.find(sent)]
    await sender.close()
    assert [(a.verdict, a.status) for a in answers] == [(Verdict.MISCONFIGURED, 404)] * 2


async def test_a_wrong_method_is_405(svix: Environment) -> None:
    answer = await svix.call("PUT", f"app/{await svix.create_application()}/msg")
    assert answer.status == 405


async def test_a_slash_at_the_end_of_a_path_changes_nothing(svix: Environment) -> None:
    """So SVIX_SERVER_URL may end with a slash."""
    answer = await svix.call("GET", f"app/{await svix.create_application()}/")
    assert answer.status == 200
