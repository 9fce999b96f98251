"""The operator's view of Svix: what it reads, and how it retries when Svix fails."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

import pytest

from local.customer import Customer
from relay.operate import svix as module
from relay.operate.svix import Pace, SvixUnavailable, SvixView
from relay.operate.whereabouts import AttemptStatus
from relay.outcome import Answer, Verdict
from tests.function import TOKEN
from tests.operate.conftest import Svix

HOUR = timedelta(hours=1)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the back-offs milliseconds."""
    monkeypatch.setattr(module, "_FIRST_BACK_OFF", 0.001)
    monkeypatch.setattr(module, "_LONGEST_BACK_OFF", 0.01)


@pytest.fixture
async def patient(svix: Svix, hurried: None) -> AsyncIterator[SvixView]:
    """A view that retries after failures."""
    async with SvixView(TOKEN, svix.url, Pace(10_000), patience=10) as view:
        yield view


async def test_all_messages_since_a_time_are_listed_newest_first(
    svix: Svix, view: SvixView
) -> None:
    """Svix lists 250 messages a page, so several pages are read."""
    for number in range(601):
        svix.add_message(f"evt_{number}", age=timedelta(minutes=number))
    since = datetime.now(UTC) - timedelta(minutes=540.5)
    found = [message async for message in view.messages("acme", since)]
    assert [message.event_id for message in found] == [f"evt_{n}" for n in range(541)]
    assert len(svix.paths) == 3
    assert not any("after" in call.path for call in svix.simulator.calls)


async def test_a_project_without_an_application(view: SvixView) -> None:
    since = datetime.now(UTC)
    assert [message async for message in view.messages("nobody", since)] == []
    assert await view.message("nobody", "evt_1") is None
    assert await view.endpoints("nobody") == []


async def test_a_message_by_its_event(svix: Svix, view: SvixView) -> None:
    stored = svix.add_message("evt_1")
    found = await view.message("acme", "evt_1")
    assert found is not None
    assert (found.id, found.event_type) == (stored.id, "user.created")
    assert await view.message("acme", "evt_2") is None


@pytest.mark.parametrize("name", ["../../x", "..", "a/b", "", "a b", "ä", "x" * 257])
async def test_an_invalid_name_is_never_sent(svix: Svix, view: SvixView, name: str) -> None:
    """The SDK puts names into the URL without escaping them."""
    assert await view.message(name, "evt_1") is None
    assert await view.message("acme", name) is None
    assert svix.paths == []


async def test_endpoints_and_attempts(svix: Svix, view: SvixView) -> None:
    """Only the host of an endpoint's URL is kept, because a path is often a secret."""
    with Customer(answer=500) as customer:
        stored = svix.add_message("evt_1")
        endpoint = svix.add_endpoint(f"{customer.url}/hush-1?key=hush-2")
        assert await view.attempts("acme", stored.id) == []
        assert await view.resend("acme", stored.id, endpoint.id)
        customer.wait(1)
        svix.wait_for_attempt(stored, endpoint)
        [attempt], [found] = await view.attempts("acme", stored.id), await view.endpoints("acme")
    assert (attempt.status, attempt.http) == (AttemptStatus.FAILED, 500)
    assert (attempt.endpoint_id, attempt.host) == (endpoint.id, "127.0.0.1")
    assert (found.id, found.host, found.disabled) == (endpoint.id, "127.0.0.1", False)
    assert "hush" not in f"{attempt}{found}"


async def test_a_resend_of_an_unknown_message_fails(svix: Svix, view: SvixView) -> None:
    svix.add_message("evt_1")
    assert not await view.resend("acme", "msg_0", "ep_0")


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "status", "status": 429},
        {"kind": "status", "status": 429, "headers": {"Retry-After": "0"}},
        {"kind": "status", "status": 503},
        {"kind": "status", "status": 502, "body": "html"},
        {"kind": "status", "status": 500, "body": "empty"},
        {"kind": "drop"},
    ],
)
async def test_a_passing_fault_is_retried(
    svix: Svix, patient: SvixView, fault: dict[str, object]
) -> None:
    """Four failures in a row must not end a whole reconciliation."""
    svix.add_message("evt_1")
    svix.inject(**fault, times=4)  # type: ignore[arg-type] # the fields of a fault
    assert await patient.message("acme", "evt_1") is not None
    assert len(svix.paths) == 5


async def test_a_svix_that_is_down_is_retried(svix: Svix, patient: SvixView) -> None:
    svix.add_message("evt_1")
    svix.run(svix.simulator.stop_listening())
    asking = asyncio.create_task(patient.message("acme", "evt_1"))
    await asyncio.sleep(0.05)
    svix.run(svix.simulator.start_listening())
    assert await asking is not None


async def test_each_wait_is_reported_with_its_reason(svix: Svix, hurried: None) -> None:
    heard: list[tuple[str, float]] = []
    svix.add_message("evt_1")
    svix.inject("status", status=503, times=2)

    def hear(reason: str, seconds: float) -> None:
        heard.append((reason, seconds))

    async with SvixView(TOKEN, svix.url, Pace(10_000), 10, hear) as view:
        await view.message("acme", "evt_1")
    assert heard == [("503", 0.001), ("503", 0.002)]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"kind": "status", "status": 401}, "check SVIX_TOKEN"),
        ({"kind": "status", "status": 403}, "check SVIX_TOKEN"),
        ({"kind": "status", "status": 404, "body": "empty"}, "the URL of its API"),
        ({"kind": "status", "status": 200, "body": "html"}, "the URL of its API"),
        ({"kind": "status", "status": 302, "body": "empty"}, "the URL of its API"),
    ],
)
async def test_a_permanent_fault_is_reported_at_once(
    svix: Svix, patient: SvixView, fault: dict[str, object], words: str
) -> None:
    svix.inject(**fault)  # type: ignore[arg-type] # the fields of a fault
    with pytest.raises(SvixUnavailable, match=words):
        await patient.message("acme", "evt_1")
    assert len(svix.paths) == 1


@pytest.mark.parametrize(
    ("status", "words"), [(429, "its rate limit is used up"), (503, "answers 503")]
)
async def test_a_fault_that_outlasts_the_patience_is_reported(
    svix: Svix, view: SvixView, status: int, words: str
) -> None:
    svix.inject("status", status=status)
    with pytest.raises(SvixUnavailable, match=words):
        await view.message("acme", "evt_1")


async def test_calls_that_share_a_pace_keep_it_together() -> None:
    pace = Pace(100)
    started_at = time.monotonic()

    async def turn() -> None:
        async with pace():
            pass

    await asyncio.gather(*(turn() for _ in range(21)))
    assert time.monotonic() - started_at >= 0.2


async def test_each_call_reports_its_answer(svix: Svix, hurried: None) -> None:
    """The pacer of a running function learns from these answers."""
    reported: list[Answer] = []

    @contextlib.asynccontextmanager
    async def turns() -> AsyncIterator[Callable[[Answer], None]]:
        yield reported.append

    svix.add_message("evt_1")
    svix.inject("status", status=429, times=1, headers={"Retry-After": "0"})
    async with SvixView(TOKEN, svix.url, turns, patience=10) as view:
        await view.message("acme", "evt_1")
        await view.message("acme", "evt_2")
    verdicts = [answer.verdict for answer in reported]
    assert verdicts == [Verdict.RATE_LIMITED, Verdict.ACCEPTED, Verdict.MISSING]
    assert reported[0].retry_after == 0
