"""The simulator behaves like Svix, seen through Svix's own SDK."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from svix.api import (
    ApplicationIn,
    EndpointIn,
    EndpointPatch,
    MessageIn,
    MessageListOptions,
    SvixAsync,
    SvixOptions,
)
from svix.api.message import MessageCreateOptions
from svix.exceptions import HttpError, HTTPValidationError
from svix.models import MessageAttemptOut

from local.behaviour import Fault
from local.customer import Customer
from local.simulator import Simulator

TOKEN = "testsk_simulated"


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    """A running simulator."""
    async with Simulator(token=TOKEN) as running:
        yield running


@pytest.fixture
async def svix(simulator: Simulator) -> AsyncIterator[SvixAsync]:
    """The SDK, without retries."""
    client = SvixAsync(TOKEN, SvixOptions(server_url=simulator.url, retry_schedule=[]))
    yield client
    await client._httpx_client.aclose()


def message(event_id: str | None = "evt_1", app: str | None = "acme", **more: Any) -> MessageIn:
    """A message. Its application `app` is created with it, unless `app` is None."""
    application = None if app is None else ApplicationIn(name=app, uid=app)
    fields: dict[str, Any] = {"event_type": "user.created", "payload": {"n": 2**70, "s": "ü"}}
    return MessageIn(**{**fields, "event_id": event_id, "application": application, **more})


def keyed(key: str) -> MessageCreateOptions:
    """The options with this idempotency key."""
    return MessageCreateOptions(idempotency_key=key)


async def refusal(call: Any) -> HttpError:
    """The error of a call that must fail."""
    with pytest.raises(HttpError) as error:
        await call
    return error.value


async def test_a_message_is_taken_and_found_by_either_id(
    svix: SvixAsync, simulator: Simulator
) -> None:
    """Its application is created with it, and its payload is unchanged."""
    created = await svix.message.create("acme", message(), keyed("k"))
    assert (await svix.message.get("acme", created.id)).event_id == "evt_1"
    assert (await svix.message.get("acme", "evt_1")).id == created.id
    [held] = simulator.messages
    assert held.payload == {"n": 2**70, "s": "ü"}


async def test_without_an_application_there_is_no_message(svix: SvixAsync) -> None:
    """The answer is 404, unless the message brings an application with the uid in the path."""
    error = await refusal(svix.message.create("acme", message(app=None), keyed("k")))
    assert (error.status_code, error.code) == (404, "not_found")
    with pytest.raises(HTTPValidationError):
        await svix.message.create("acme", message(app="globex"), keyed("k"))
    await svix.application.create(ApplicationIn(name="acme", uid="acme"))
    await svix.message.create("acme", message(app=None), keyed("k"))


async def test_a_wrong_token_is_refused(simulator: Simulator) -> None:
    client = SvixAsync("wrong", SvixOptions(server_url=simulator.url, retry_schedule=[]))
    error = await refusal(client.message.create("acme", message(), keyed("k")))
    assert (error.status_code, error.code) == (401, "authentication_failed")
    await client._httpx_client.aclose()


async def test_the_same_key_is_replayed_for_twelve_hours(
    svix: SvixAsync, simulator: Simulator
) -> None:
    """The same answer comes for any body. After twelve hours, only the event id counts."""
    first = await svix.message.create("acme", message(), keyed("k"))
    again = await svix.message.create("acme", message("evt_2"), keyed("k"))
    assert again.id == first.id
    simulator.behaviour.clock_offset = timedelta(hours=12, minutes=1)
    error = await refusal(svix.message.create("acme", message(), keyed("k")))
    assert error.status_code == 409
    assert len(simulator.messages) == 1


async def test_an_event_id_is_unique_for_a_day_and_within_its_application(
    svix: SvixAsync, simulator: Simulator
) -> None:
    """The answer is 409. After a day the id is accepted again."""
    await svix.message.create("acme", message(), keyed("1"))
    await svix.message.create("globex", message(app="globex"), keyed("2"))
    error = await refusal(svix.message.create("acme", message(), keyed("3")))
    assert (error.status_code, error.code) == (409, "conflict")
    simulator.behaviour.clock_offset = timedelta(hours=24, minutes=1)
    await svix.message.create("acme", message(), keyed("4"))
    assert len(simulator.messages) == 3


async def test_a_second_call_waits_for_the_first_of_its_key(
    svix: SvixAsync, simulator: Simulator
) -> None:
    """It gets the answer of the first."""
    simulator.behaviour.latency = 0.2
    answers = await asyncio.gather(
        *(svix.message.create("acme", message(), keyed("k")) for _ in range(5))
    )
    assert len({answer.id for answer in answers}) == 1
    assert len(simulator.messages) == 1


@pytest.mark.parametrize(
    ("app", "change"),
    [
        ("app_x", {}),
        ("acme", {"event_id": "msg_1"}),
        ("acme", {"event_id": "a b"}),
        ("acme", {"event_type": "user/created"}),
        ("acme", {"event_type": "x" * 257}),
    ],
)
async def test_names_are_validated(svix: SvixAsync, app: str, change: dict[str, Any]) -> None:
    """The answer is a 422 in the SDK's format."""
    with pytest.raises(HTTPValidationError) as error:
        await svix.message.create(app, message(app=app, **change), keyed("k"))
    assert error.value.detail[0].loc[0] == "body"


async def test_a_payload_over_a_mebibyte_is_too_large(svix: SvixAsync) -> None:
    large = message(payload={"s": "x" * 1024 * 1024})
    error = await refusal(svix.message.create("acme", large, keyed("k")))
    assert (error.status_code, error.code) == (413, "payload_too_large")


@pytest.mark.parametrize(
    ("setting", "header"), [(None, None), ("seconds", "1"), ("date", " GMT"), ("soon", "soon")]
)
async def test_the_rate_is_limited_by_a_bucket(
    simulator: Simulator, setting: str | None, header: str | None
) -> None:
    """If the bucket is empty, the answer is 429, with or without Retry-After."""
    simulator.behaviour.rate = 0.001
    simulator.behaviour.retry_after = setting
    url = f"{simulator.url}/api/v1/app"
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        statuses = [(await client.get(url)).status_code for _ in range(50)]
        refused = await client.get(url)
    assert statuses == [200] * 50
    assert refused.status_code == 429
    assert (header or "") in refused.headers.get("retry-after", "")
    assert ("retry-after" in refused.headers) is (header is not None)


@pytest.mark.parametrize(
    ("fault", "stored"),
    [
        (Fault("drop", times=1), 0),
        (Fault("lose_answer", times=1), 1),
        (Fault("store_then_status", status=500, times=1), 1),
        (Fault("status", status=503, body="html", times=1), 0),
        (Fault("race", times=1), 0),
    ],
)
async def test_a_fault_affects_the_given_number_of_calls(
    svix: SvixAsync, simulator: Simulator, fault: Fault, stored: int
) -> None:
    """Some faults store the message, and then it must be in Svix."""
    simulator.inject(fault)
    with pytest.raises((httpx.RequestError, HttpError, json.JSONDecodeError)):
        await svix.message.create("acme", message(), keyed("k"))
    assert len(simulator.messages) == stored
    await svix.message.create("acme", message("evt_2"), keyed("k2"))


@pytest.mark.parametrize("kind", ["hang", "drip"])
async def test_a_call_that_hangs_ends_when_faults_are_cleared(
    svix: SvixAsync, simulator: Simulator, kind: str
) -> None:
    """Its connection is reset."""
    simulator.inject(Fault(kind))
    call = asyncio.create_task(svix.message.create("acme", message(), keyed("k")))
    _, pending = await asyncio.wait([call], timeout=0.2)
    assert pending
    simulator.clear_faults()
    with pytest.raises(httpx.RequestError):
        await call


async def test_it_can_refuse_connections_and_come_back(
    svix: SvixAsync, simulator: Simulator
) -> None:
    """It comes back on the same port."""
    url = simulator.url
    await simulator.stop_listening()
    with pytest.raises(httpx.RequestError):
        await svix.message.create("acme", message(), keyed("k"))
    await simulator.start_listening()
    assert simulator.url == url
    await svix.message.create("acme", message(), keyed("k"))


async def test_lists_are_paged_newest_first_and_bounded_by_time(
    svix: SvixAsync, simulator: Simulator
) -> None:
    """The SDK pages through them with its own iterator."""
    for number in range(5):
        simulator.behaviour.clock_offset = timedelta(
            seconds=number
        )  # ids of the same moment have no order
        await svix.message.create("acme", message(f"evt_{number}"), keyed(str(number)))
    seen: list[str | None] = []
    iterator = None
    while True:
        page = await svix.message.list("acme", MessageListOptions(limit=2, iterator=iterator))
        seen += [item.event_id for item in page.data]
        iterator = page.iterator
        if page.done:
            break
    assert seen == ["evt_4", "evt_3", "evt_2", "evt_1", "evt_0"]
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    assert not (await svix.message.list("acme", MessageListOptions(after=tomorrow))).data


@pytest.fixture
def customer() -> Iterator[Customer]:
    """A customer's endpoint."""
    with Customer() as running:
        yield running


async def endpoint(svix: SvixAsync, url: str, **more: Any) -> str:
    """Create an endpoint of acme. Returns its id."""
    created = await svix.endpoint.create("acme", EndpointIn(url=url, **more))
    return created.id


async def attempts(svix: SvixAsync, message_id: str, count: int) -> list[MessageAttemptOut]:
    """Wait for this many attempts of a message, and return them, oldest first."""
    async with asyncio.timeout(10):
        while True:
            listed = (await svix.message_attempt.list_by_msg("acme", message_id)).data
            if len(listed) >= count:
                return listed[::-1]
            await asyncio.sleep(0.01)


@pytest.fixture
async def acme(svix: SvixAsync) -> None:
    """Create the application acme."""
    await svix.application.create(ApplicationIn(name="acme", uid="acme"))


@pytest.mark.usefixtures("acme")
async def test_a_failed_attempt_is_made_again_on_schedule(
    svix: SvixAsync, simulator: Simulator, customer: Customer
) -> None:
    """It is repeated until the endpoint takes the message or the schedule ends.

    `nextAttempt` says when the next attempt is due.
    """
    simulator.behaviour.retry_schedule = (0.05, 0.05)
    customer.answer = 500
    await endpoint(svix, customer.url)
    failing = await svix.message.create("acme", message(), keyed("1"))
    made = await attempts(svix, failing.id, 3)
    assert [attempt.response_status_code for attempt in made] == [500, 500, 500]
    simulator.behaviour.retry_schedule = (3600,)
    waiting = await svix.message.create("acme", message("evt_2"), keyed("2"))
    await attempts(svix, waiting.id, 1)
    [given_up] = (await svix.message_attempt.list_attempted_destinations("acme", failing.id)).data
    [tried] = (await svix.message_attempt.list_attempted_destinations("acme", waiting.id)).data
    assert (given_up.status, given_up.next_attempt) == (2, None)
    assert tried.next_attempt is not None
    assert tried.next_attempt - datetime.now(UTC) > timedelta(minutes=59)


@pytest.mark.usefixtures("acme")
async def test_a_disabled_endpoint_gets_no_further_attempts(
    svix: SvixAsync, simulator: Simulator, customer: Customer
) -> None:
    """A deleted endpoint gets none either. Its earlier attempts are still listed."""
    simulator.behaviour.retry_schedule = (0.2, 0.2)
    customer.answer = 500
    disabled, deleted = await endpoint(svix, customer.url), await endpoint(svix, customer.url)
    created = await svix.message.create("acme", message(), keyed("1"))
    await attempts(svix, created.id, 2)
    await svix.endpoint.patch("acme", disabled, EndpointPatch(disabled=True))
    await svix.endpoint.delete("acme", deleted)
    other = await endpoint(svix, customer.url)
    await svix.message_attempt.resend("acme", created.id, disabled)
    await svix.message_attempt.resend("acme", created.id, other)
    made = await attempts(svix, created.id, 3)
    assert [attempt.endpoint_id for attempt in made[2:]] == [other]
    shown = (await svix.message_attempt.list_attempted_destinations("acme", created.id)).data
    assert {destination.id for destination in shown} == {disabled, deleted, other}


@pytest.mark.usefixtures("acme")
async def test_nothing_is_sent_to_another_machine(svix: SvixAsync) -> None:
    """The attempt fails and says why."""
    await endpoint(svix, "https://customer.example/hook")
    created = await svix.message.create("acme", message(), keyed("1"))
    [attempt] = await attempts(svix, created.id, 1)
    assert (attempt.response_status_code, attempt.status) == (0, 2)
    assert "loopback" in attempt.response


@pytest.mark.usefixtures("acme")
async def test_a_message_that_is_stored_and_not_queued_is_never_sent(
    svix: SvixAsync, simulator: Simulator, customer: Customer
) -> None:
    """Svix may crash after it has stored a message and before it has queued it.

    A resend sends the message.
    """
    there = await endpoint(svix, customer.url)
    simulator.inject(Fault("store_unqueued", times=1))
    with pytest.raises((HttpError, json.JSONDecodeError)):
        await svix.message.create("acme", message(), keyed("1"))
    error = await refusal(svix.message.create("acme", message(), keyed("1")))
    assert error.status_code == 409
    stored = await svix.message.get("acme", "evt_1")
    await svix.message.create("acme", message("evt_2"), keyed("2"))
    await asyncio.to_thread(customer.wait, 1)
    assert not (await svix.message_attempt.list_by_msg("acme", stored.id)).data
    await svix.message_attempt.resend("acme", stored.id, there)
    arrived = await asyncio.to_thread(customer.wait, 2)
    assert arrived[1].message_id == stored.id


async def test_each_new_application_can_have_an_endpoint(customer: Customer) -> None:
    """`make run` needs this.

    A customer's application is created with the customer's first event.
    """
    async with Simulator(TOKEN, endpoint_for=lambda app: f"{customer.url}/{app}") as running:
        client = SvixAsync(TOKEN, SvixOptions(server_url=running.url, retry_schedule=[]))
        await client.message.create("acme", message(), keyed("1"))
        await client.message.create("globex", message(app="globex"), keyed("2"))
        arrived = await asyncio.to_thread(customer.wait, 2)
        assert {arrival.path for arrival in arrived} == {"/acme", "/globex"}
        await client._httpx_client.aclose()


async def test_a_restart_loses_the_keys(svix: SvixAsync, simulator: Simulator) -> None:
    """After that, only the event id prevents a second message."""
    await svix.message.create("acme", message(), keyed("1"))
    simulator.restart()
    error = await refusal(svix.message.create("acme", message(), keyed("1")))
    assert (error.status_code, len(simulator.messages)) == (409, 1)


async def test_the_open_source_svix_never_forgets_an_event_id(
    svix: SvixAsync, simulator: Simulator
) -> None:
    """The hosted one forgets it after a day."""
    simulator.behaviour.kind = "open_source"
    await svix.message.create("acme", message(), keyed("1"))
    simulator.behaviour.clock_offset = timedelta(days=100)
    error = await refusal(svix.message.create("acme", message(), keyed("2")))
    assert error.status_code == 409


async def test_a_fault_can_affect_one_application(svix: SvixAsync, simulator: Simulator) -> None:
    """Calls for other applications are answered."""
    simulator.inject(Fault("status", status=503, body="json", app="acme"))
    await svix.message.create("globex", message(app="globex"), keyed("1"))
    error = await refusal(svix.message.create("acme", message(), keyed("2")))
    assert error.status_code == 503
