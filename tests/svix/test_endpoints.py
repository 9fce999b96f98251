"""Which endpoints get a message, the attempts there, and sending a message again.

Not every Svix can reach an endpoint on this machine. If it can't, the same tests check the
attempts, which fail.
"""

import asyncio
import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from local.customer import Customer
from relay.operate.whereabouts import Attempt, AttemptStatus
from relay.outcome import Verdict
from tests.svix.target import PREFIX, Environment, event, until

TEXT = '{ "n": 1.000000000000000000001,\t"big": 12345678901234567890123, "s": "\\u00fc/\\/" }'
MINIFIED = '{"n":1.000000000000000000001,"big":12345678901234567890123,"s":"ü//"}'


async def endpoint(svix: Environment, app: str, customer: Customer, **more: Any) -> str:
    """Create an endpoint of the application. Returns its id."""
    url = customer.url if svix.target.reaches_us else "https://nobody.invalid"
    answer = await svix.call("POST", f"app/{app}/endpoint", json={"url": f"{url}/hook"} | more)
    assert answer.status == 201, answer.body
    name: str = answer.json()["id"]
    return name


async def attempts(
    svix: Environment, app: str, message_id: str | None, count: int
) -> list[Attempt]:
    """Wait for this many attempts of a message. Returns them as the relay's commands see them."""
    assert message_id is not None
    return await until(
        lambda: svix.view.attempts(app, message_id), lambda listed: len(listed) >= count
    )


async def event_type(svix: Environment) -> str:
    """Add an event type to the catalogue. Returns its name."""
    name = f"{PREFIX}-{uuid.uuid4().hex[:8]}"
    svix.event_types.add(name)
    answer = await svix.call("POST", "event-type", json={"name": name, "description": "made up"})
    assert answer.status == 201, answer.body
    return name


async def test_a_message_arrives_signed(svix: Environment, customer: Customer) -> None:
    """The open-source Svix passes the text on unchanged. The hosted one removes the spaces."""
    app = await svix.create_application()
    name = await endpoint(svix, app, customer)
    secret = (await svix.call("GET", f"app/{app}/endpoint/{name}/secret")).json()["key"]
    created = await svix.send(event(app, "evt_1", text=TEXT))
    [attempt] = await attempts(svix, app, created.message_id, 1)
    assert attempt.endpoint_id == name
    if svix.target.reaches_us:
        [arrival] = await asyncio.to_thread(customer.wait, 1)
        assert (arrival.path, arrival.message_id) == ("/hook", created.message_id)
        expected = MINIFIED if svix.target.is_hosted else TEXT
        assert arrival.body.decode() == expected
        assert json.loads(arrival.body) == json.loads(TEXT)
        assert arrival.is_signed(secret)
        assert attempt.status is AttemptStatus.SUCCEEDED
        assert (attempt.http, attempt.host) == (204, "127.0.0.1")


async def test_an_endpoint_can_choose_only_types_in_the_catalogue(
    svix: Environment, customer: Customer
) -> None:
    """So a customer can't choose a type that does not exist."""
    app = await svix.create_application()
    body = {"url": f"{customer.url}/hook", "filterTypes": [f"{PREFIX}-unheard.of"]}
    refused = await svix.call("POST", f"app/{app}/endpoint", json=body)
    assert refused.status == 422
    assert refused.json()["detail"][0]["loc"] == ["body", "eventTypes"]


async def test_an_endpoint_gets_what_it_wants(svix: Environment, customer: Customer) -> None:
    """An endpoint's types and channels decide which messages it gets.

    A message of a type that is not in the catalogue goes to the endpoints that take all types. The
    relay gives messages no channels, so an endpoint with channels gets none of them.
    """
    app, wanted = await svix.create_application(), await event_type(svix)
    everything = await endpoint(svix, app, customer)
    one_type = await endpoint(svix, app, customer, filterTypes=[wanted])
    await endpoint(svix, app, customer, channels=["a"])
    await endpoint(svix, app, customer, disabled=True)
    shown = {each.id: each for each in await svix.view.endpoints(app)}
    assert len(shown) == 4
    assert shown[one_type].event_types == {wanted}
    assert sorted(each.disabled for each in shown.values()) == [False, False, False, True]
    assert sorted(map(sorted, (each.channels for each in shown.values()))) == [[], [], [], ["a"]]
    first = await svix.send(event(app, type=wanted))
    second = await svix.send(event(app, type="unheard.of"))
    made = await attempts(svix, app, first.message_id, 2)
    assert {attempt.endpoint_id for attempt in made} == {everything, one_type}
    [only] = await attempts(svix, app, second.message_id, 1)
    assert only.endpoint_id == everything


async def test_without_an_endpoint_there_is_no_attempt(
    svix: Environment, customer: Customer
) -> None:
    """There is none without an endpoint, and none if the only endpoint is disabled."""
    without, disabled = await svix.create_application(), await svix.create_application()
    there = await svix.create_application()
    await endpoint(svix, disabled, customer, disabled=True)
    await endpoint(svix, there, customer)
    sent = {app: await svix.send(event(app)) for app in (without, disabled, there)}
    assert {answer.verdict for answer in sent.values()} == {Verdict.ACCEPTED}
    await attempts(svix, there, sent[there].message_id, 1)  # the others were sent before
    for app in (without, disabled):
        assert await attempts(svix, app, sent[app].message_id, 0) == []


async def test_a_failed_attempt_is_made_again_later(svix: Environment, customer: Customer) -> None:
    """Until then it counts as failed, and `nextAttempt` says when the next attempt is."""
    app = await svix.create_application()
    customer.answer = 500
    name = await endpoint(svix, app, customer)
    created = await svix.send(event(app))
    [attempt, *_] = await attempts(svix, app, created.message_id, 1)
    assert attempt.status is AttemptStatus.FAILED
    assert attempt.http == (500 if svix.target.reaches_us else None)
    assert created.message_id is not None
    planned = await svix.view.next_attempts(app, created.message_id)
    assert planned.keys() == {name}
    assert planned[name] - datetime.now(UTC) < timedelta(hours=10)


async def test_a_message_can_be_sent_to_an_endpoint_again(
    svix: Environment, customer: Customer
) -> None:
    """It has the same id, so that the receiver recognises it. This repairs a lost fan-out."""
    app = await svix.create_application()
    created = await svix.send(event(app))
    assert created.message_id is not None
    name = await endpoint(svix, app, customer)
    assert await svix.view.attempts(app, created.message_id) == []
    assert await svix.view.resend(app, created.message_id, name)
    [attempt] = await attempts(svix, app, created.message_id, 1)
    assert attempt.endpoint_id == name
    if svix.target.reaches_us:
        [arrival] = await asyncio.to_thread(customer.wait, 1)
        assert arrival.message_id == created.message_id


@pytest.mark.parametrize(("message", "name"), [("evt_none", None), (None, "ep_none")])
async def test_an_unknown_message_or_endpoint_is_not_resent(
    svix: Environment, customer: Customer, message: str | None, name: str | None
) -> None:
    """Svix answers 404 for both."""
    app = await svix.create_application()
    created = await svix.send(event(app))
    there = await endpoint(svix, app, customer)
    assert created.message_id is not None
    assert not await svix.view.resend(app, message or created.message_id, name or there)


async def test_tags_find_a_message_on_the_hosted_svix(svix: Environment) -> None:
    """The open-source one accepts tags and ignores them."""
    app = await svix.create_application()
    tagged = await svix.send(event(app, tags=("usr_1", "usr_2")))
    assert (await svix.send(event(app))).verdict is Verdict.ACCEPTED
    shown = (await svix.call("GET", f"app/{app}/msg", query={"tag": "usr_2"})).json()["data"]
    names = [message["id"] for message in shown]
    if svix.target.is_hosted:
        assert names == [tagged.message_id]
    else:
        assert len(names) == 2
