"""The demonstration of `make run`: posts requests to the function and checks the answers.

The requests are the events of `events/` in three forms of body, duplicates, bodies that are not
valid events, an event that Svix refuses for good, and an event for which Svix first answers 429.
"""

import base64
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyreqwest.client import Client, ClientBuilder

from local.behaviour import Fault
from local.endpoints import Endpoints
from local.messages import SUBSCRIPTION
from local.stack import ROOT
from local.tenants import Tenants

EVENTS = sorted((Path(__file__).parent / "events").glob("*.json"))
_PUSHED_BY = "APIs-Google; (+https://developers.google.com/webmasters/APIs-Google.html)"
_JSON = {"content-type": "application/json"}
_PUSH = {**_JSON, "user-agent": _PUSHED_BY}
_ARRIVAL_LIMIT = 15.0  # seconds from Svix's last answer to the last webhook at the endpoint

LATE, REFUSED = "evt_0Sx1late", "evt_0Sx1refused"


@dataclass(frozen=True, slots=True)
class Post:
    """One request to the function, and the answer that it should get."""

    name: str
    form: str
    body: bytes = field(repr=False)
    headers: Mapping[str, str]
    expected: str
    faults: tuple[Fault, ...] = ()
    """Faults to inject into the simulator before the request."""


def by_hand(
    name: str, body: bytes, expected: str = "200 delivered", faults: tuple[Fault, ...] = ()
) -> Post:
    """A request as a person or a script posts it."""
    return Post(name, "by hand", body, _JSON, expected, faults)


def wrapped(
    name: str, body: bytes, expected: str = "200 delivered", faults: tuple[Fault, ...] = ()
) -> Post:
    """A push as Pub/Sub sends it by default."""
    message = {
        "data": base64.b64encode(body).decode(),
        "messageId": name,
        "publishTime": "2026-11-24T09:15:00Z",
    }
    push = {"message": message, "subscription": SUBSCRIPTION}
    return Post(name, "push", json.dumps(push).encode(), _PUSH, expected, faults)


def unwrapped(name: str, body: bytes) -> Post:
    """A push as Pub/Sub sends it with payload unwrapping and metadata."""
    headers = {**_PUSH, "x-goog-pubsub-message-id": name}
    return Post(name, "unwrapped push", body, headers, "200 delivered")


def sample_events(rename: Callable[[str], str]) -> dict[str, dict[str, Any]]:
    """The events of `events/`, by name. `rename` maps each project to the one used here."""
    events = {path.stem[3:]: json.loads(path.read_bytes()) for path in EVENTS}
    return {name: event | {"project": rename(event["project"])} for name, event in events.items()}


def posts(events: Mapping[str, Mapping[str, Any]], *, with_faults: bool) -> Iterator[Post]:
    """The requests, in the order in which they are posted."""
    bodies = {name: json.dumps(event).encode() for name, event in events.items()}
    for number, (name, body) in enumerate(bodies.items()):
        yield (by_hand, wrapped, unwrapped)[number % 3](name, body)
    first = next(iter(bodies))
    yield by_hand(f"{first}, again", bodies[first], "200 duplicate")
    yield wrapped(f"{first}, published again", bodies[first], "200 duplicate")
    yield by_hand("not a valid event", b'{"type": "user.created"}', "400 malformed")
    yield wrapped("not a valid event, published", b'{"type": "user.created"}', "200 malformed")
    if with_faults:
        project = events[first]["project"]
        late = {"id": LATE, "type": "user.updated", "project": project, "data": {}}
        too_many = Fault("status", status=429, headers={"Retry-After": "1"}, times=2)
        yield by_hand(
            "while Svix answers 429, twice", json.dumps(late).encode(), faults=(too_many,)
        )
        refused = {"id": REFUSED, "type": "user.updated", "project": project, "data": {}}
        never = Fault("status", status=422, body="invalid", times=1)
        yield wrapped(
            "an event that Svix refuses", json.dumps(refused).encode(), "200 rejected", (never,)
        )


async def demonstrate(
    url: str, requests: Iterator[Post], inject: Callable[[Fault], None] = lambda _fault: None
) -> bool:
    """Post everything and print each answer. Returns whether all are as expected."""
    print(f"\n{'request':32} {'sent as':15} answer\n{'-' * 66}")
    as_expected = True
    client = ClientBuilder().no_proxy().build()
    for post in requests:
        for fault in post.faults:
            inject(fault)
        answered = await _send(client, url, post)
        mark = "" if answered == post.expected else f"  <- expected {post.expected}"
        as_expected &= not mark
        print(f"{post.name:32} {post.form:15} {answered}{mark}", flush=True)
    await client.close()
    print("\nA push that can never succeed is parked, and answered 200.")
    return as_expected


async def _send(client: Client, url: str, post: Post) -> str:
    """Post it, and return the answer in the form of `Post.expected`."""
    request = client.post(f"{url}/notifications").headers(dict(post.headers))
    answer = await request.body_bytes(post.body).build().send()
    outcome = (await answer.json()).get("outcome", "(no outcome)")
    return f"{answer.status} {outcome}"


async def show_messages(tenants: Tenants, expected: set[tuple[str, str]]) -> bool:
    """Print what Svix holds. Returns whether that is one message for each event.

    `expected` holds the project and the id of each event.
    """
    projects = sorted({project for project, _ in expected})
    held = await tenants.messages(projects)
    counts = {project: sum(n for (p, _), n in held.items() if p == project) for project in projects}
    words = ", ".join(f"{count} for {project}" for project, count in counts.items())
    print(f"\nSvix holds {held.total()} messages: {words}.")
    missing, surplus = expected - held.keys(), [name for name, n in held.items() if n > 1]
    if missing or surplus or len(held) != len(expected):
        print(f"Missing: {sorted(missing) or 'none'}; more than once: {surplus or 'none'}")
        return False
    print("Each event is one message.")
    return True


async def show_arrivals(endpoints: Endpoints, path: str, secret: str, count: int) -> bool:
    """Print what reached a customer's endpoint. Returns whether each arrived once, signed."""
    with contextlib.suppress(TimeoutError):  # the line below says what is missing
        await endpoints.wait(count, path, _ARRIVAL_LIMIT)
    arrived = [webhook for webhook in endpoints.received if webhook.path == path]
    different = len({webhook.message_id for webhook in arrived})
    signed = sum(webhook.is_signed(secret) for webhook in arrived)
    as_expected = different == signed == len(arrived) == count
    how = "each once, each signed" if as_expected else f"{different} different, {signed} signed"
    print(f"The customer's endpoint {path} got {len(arrived)} of {count}: {how}.")
    return as_expected


def show_conclusion(*, as_expected: bool) -> None:
    """Print whether the demonstration has gone as it should."""
    print("Everything is as expected." if as_expected else "Not everything is as expected.")


def show_commands(settings: str, project: str, event_id: str) -> None:
    """Print the operator's commands for the function that runs here."""
    python = Path(sys.executable)
    relay = f"{python.relative_to(ROOT) if python.is_relative_to(ROOT) else python} -m relay"
    print(f"""
The operator's commands, in another terminal:

  export {settings}
  {relay} inspect --project {project} {event_id}
  {relay} dead-letters list
  {relay} dead-letters replay --all
  {relay} reconcile --since 1h
""")
