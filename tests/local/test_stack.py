"""The local stack with real processes. Whatever happens to them, it behaves like Google Cloud."""

import asyncio
import json
import signal
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from local.page.lane import RELAY, Kind, Lane, make_events
from local.processes import ServerFailed
from local.push import Policy
from local.stack import ROOT, Instance, Program, Stack, State
from tests.harness.processes import gone

ECHO = Program(Path(__file__).parent / "echo.py", "LEDGER", "{}")
POLICY = Policy(initial_window=50, max_pause=0.2, min_retry_delay=0.1, max_retry_delay=0.5)


def stack(directory: Path, program: Program = ECHO, instances: int = 1) -> Stack:
    """A stack with short times."""
    return Stack(program, directory, instances=instances, policy=POLICY)


def is_up(instance: Instance) -> bool:
    """Whether it takes and answers pushes."""
    return instance.state is State.UP


async def until(is_so: Callable[[], object]) -> None:
    """Wait until the condition is true. The test's own time limit is the only one."""
    while not is_so():  # noqa: ASYNC110 - nothing signals it
        await asyncio.sleep(0.01)


def publish(to: Stack, count: int, text: str = "200") -> None:
    """Publish messages with this text, which says how the function answers."""
    for number in range(count):
        to.publish(text.encode(), "acme", f"evt_{number}")


async def test_the_relay_delivers_an_event_to_the_customer(tmp_path: Path) -> None:
    """The event goes from the topic to the endpoint, and the relay's debug log is passed on."""
    lines = []
    async with Stack(
        RELAY.program, tmp_path, observe=lambda instance, line: lines.append((instance, line))
    ) as relay:
        event = {"id": "evt_1", "type": "user.created", "project": "acme"}
        message = relay.publish(json.dumps(event).encode(), "acme", "evt_1")
        await until(lambda: relay.endpoints.received)
        await until(lambda: message.acked_at)
        assert [stored.event_id for stored in relay.simulator.messages] == ["evt_1"]
        assert relay.endpoints.received[0].message_id == relay.simulator.messages[0].id
        await until(lambda: any(b'"settled"' in line for _, line in lines))
        assert {instance.number for instance, _ in lines} == {1}


async def test_pushes_go_on_after_a_kill(tmp_path: Path) -> None:
    """A broken connection is a nack. Another instance starts, and the message is redelivered."""
    async with stack(tmp_path) as echo:
        message = echo.publish(b"hang, then 200", "acme", "evt_1")
        await until(lambda: message.pushes)
        (killed,) = echo.instances
        await echo.kill(killed)
        assert killed.server is not None
        assert gone(killed.server.pid)
        await until(lambda: message.acked_at)
        assert [push.status for push in message.pushes] == [None, 200]
        assert [push.instance for push in message.pushes] == [1, 2]


async def test_an_instance_that_dies_is_replaced(tmp_path: Path) -> None:
    async with stack(tmp_path) as echo:
        server = echo.instances[0].server
        assert server is not None
        server.send_signal(signal.SIGKILL)
        await until(lambda: [i.number for i in echo.instances if i.state is State.UP] == [2])


async def test_a_frozen_instance_answers_when_it_is_resumed(tmp_path: Path) -> None:
    async with stack(tmp_path) as echo:
        (instance,) = echo.instances
        echo.freeze(instance, 0.3)
        assert not is_up(instance)
        message = echo.publish(b"200", "acme", "evt_1")
        await until(lambda: message.acked_at)
        assert is_up(instance)
        assert len(message.pushes) == 1


async def test_instances_share_the_pushes_and_come_and_go(tmp_path: Path) -> None:
    async with stack(tmp_path) as echo:
        await echo.scale(2)
        publish(echo, 20)
        await until(lambda: echo.subscription.is_done)
        assert {message.pushes[0].instance for message in echo.messages} == {1, 2}
        leaving = echo.instances[1].server
        await echo.scale(1)
        assert leaving is not None
        assert leaving.process.returncode == 0, "the instance ended with an error on SIGTERM"
        assert [instance.number for instance in echo.instances] == [1]


async def test_a_deployment_loses_no_push(tmp_path: Path) -> None:
    """The new instance gets the new pushes. The old one answers those that it has, and ends."""
    async with stack(tmp_path) as echo:
        message = echo.publish(b"slow 200", "acme", "evt_0")
        await until(lambda: message.pushes)
        deploying = asyncio.create_task(echo.deploy())
        await until(lambda: echo.instances[0].state is State.ENDING)
        publish(echo, 5)
        await deploying
        await until(lambda: echo.subscription.is_done)
        assert not echo.subscription.nacked
        assert [message.pushes[0].instance for message in echo.messages] == [1] + 5 * [2]


async def test_the_address_stays_the_same_when_an_instance_is_replaced(tmp_path: Path) -> None:
    """The README's `curl` commands post to it."""
    async with stack(tmp_path) as echo, httpx.AsyncClient() as client:
        url = f"{echo.url}/notifications"
        assert (await client.post(url, content=b"204")).status_code == 204
        await echo.kill(echo.instances[0])
        assert (await client.post(url, content=b"204")).status_code == 204


async def test_a_message_nacked_too_often_goes_to_the_dead_letter_topic(tmp_path: Path) -> None:
    policy = Policy(min_retry_delay=0.01, max_retry_delay=0.01, max_pause=0.01, dead_letter_after=3)
    async with Stack(ECHO, tmp_path, policy=policy) as echo:
        message = echo.publish(b"500", "acme", "evt_1")
        await until(lambda: echo.subscription.is_done)
        assert message.is_dead_letter
        assert [push.status for push in message.pushes] == 3 * [500]
        assert message.acked_at is None


async def test_a_restart_forgets_everything(tmp_path: Path) -> None:
    """It does so even while pushes are under way and Svix is down. The addresses stay."""
    async with stack(tmp_path) as echo:
        urls = (echo.url, echo.simulator.url)
        echo.ledger.write_text("")
        echo.publish(b"hang", "acme", "evt_1")
        await until(lambda: echo.subscription.outstanding)
        await echo.stop_svix()
        await echo.restart()
        assert (echo.url, echo.simulator.url) == urls
        assert not echo.ledger.exists()
        assert not echo.messages
        publish(echo, 3)
        await until(lambda: echo.subscription.is_done)
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{echo.simulator.url}/control/summary")).status_code == 200


async def test_what_is_published_while_a_lane_starts_over_is_counted(tmp_path: Path) -> None:
    """The journal and the stack start over at the same moment.

    The new instances take seconds to start, and events are published meanwhile.
    """
    kind = Kind("echo", "The echo", "answers", ECHO, has_letters=False)
    async with Lane(kind, stack(tmp_path, instances=2)) as lane:
        await lane.scale(-1)
        restarting = asyncio.create_task(lane.restart())
        while not restarting.done():
            lane.publish(make_events(1, ["acme"]))
            await asyncio.sleep(0.02)
        assert len(lane.stack.instances) == 2, "not as many instances as at first"
        published = lane.journal.verdict()["published"]
        assert published == len(lane.stack.messages)
        assert published > 1


async def test_a_function_that_does_not_start_is_an_error_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    """The process of the second instance is ended as well."""
    program = Program(ROOT / "local" / "no_such_file.py", "LEDGER", "{}")
    broken = stack(tmp_path, program, instances=2)
    with pytest.raises(ServerFailed, match="no_such_file"):
        await broken.__aenter__()
    assert not broken.instances
