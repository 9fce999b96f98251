"""What `make run` posts to the function, what should come of each, and what came.

What is in `events/` in all three bodies, a duplicate, what is no event, an event that Svix refuses
and one while Svix is refusing everything.
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

from local.conduct import Fault
from local.endpoints import Endpoints
from local.messages import SUBSCRIPTION
from local.stack import ROOT
from local.tenants import Tenants

EVENTS = sorted((Path(__file__).parent / "events").glob("*.json"))
_PUSHED_BY = "APIs-Google; (+https://developers.google.com/webmasters/APIs-Google.html)"
_JSON = {"content-type": "application/json"}
_PUSH = {**_JSON, "user-agent": _PUSHED_BY}
_ARRIVAL_LIMIT = 15.0  # seconds, for what Svix sends on after it has answered

LATE, REFUSED = "evt_0Sx1late", "evt_0Sx1refused"


@dataclass(frozen=True, slots=True)
class Post:
    """One request to the function, and what should come of it."""

    name: str
    form: str
    body: bytes = field(repr=False)
    headers: Mapping[str, str]
    expected: str
    faults: tuple[Fault, ...] = ()
    """What goes wrong at Svix first; of the simulator only."""


def by_hand(
    name: str, body: bytes, expected: str = "200 delivered", faults: tuple[Fault, ...] = ()
) -> Post:
    """As a person or a script posts it."""
    return Post(name, "by hand", body, _JSON, expected, faults)


def wrapped(
    name: str, body: bytes, expected: str = "200 delivered", faults: tuple[Fault, ...] = ()
) -> Post:
    """As Pub/Sub pushes by default."""
    message = {
        "data": base64.b64encode(body).decode(),
        "messageId": name,
        "publishTime": "2026-11-24T09:15:00Z",
    }
    push = {"message": message, "subscription": SUBSCRIPTION}
    return Post(name, "push", json.dumps(push).encode(), _PUSH, expected, faults)


def unwrapped(name: str, body: bytes) -> Post:
    """As Pub/Sub pushes with payload unwrapping and metadata."""
    headers = {**_PUSH, "x-goog-pubsub-message-id": name}
    return Post(name, "unwrapped push", body, headers, "200 delivered")


def sample_events(rename: Callable[[str], str]) -> dict[str, dict[str, Any]]:
    """The events of `events/` by their names; `rename` gives each project its name here."""
    events = {path.stem[3:]: json.loads(path.read_bytes()) for path in EVENTS}
    return {name: event | {"project": rename(event["project"])} for name, event in events.items()}


def posts(events: Mapping[str, Mapping[str, Any]], *, with_faults: bool) -> Iterator[Post]:
    """What is posted, in order."""
    bodies = {name: json.dumps(event).encode() for name, event in events.items()}
    for number, (name, body) in enumerate(bodies.items()):
        yield (by_hand, wrapped, unwrapped)[number % 3](name, body)
    first = next(iter(bodies))
    yield by_hand(f"{first}, again", bodies[first], "200 duplicate")
    yield wrapped(f"{first}, published again", bodies[first], "200 duplicate")
    yield by_hand("no event", b'{"type": "user.created"}', "400 malformed")
    yield wrapped("no event, published", b'{"type": "user.created"}', "200 malformed")
    if with_faults:
        project = events[first]["project"]
        late = {"id": LATE, "type": "user.updated", "project": project, "data": {}}
        too_many = Fault("status", status=429, headers={"Retry-After": "1"}, times=2)
        yield by_hand("while Svix refuses all", json.dumps(late).encode(), faults=(too_many,))
        refused = {"id": REFUSED, "type": "user.updated", "project": project, "data": {}}
        never = Fault("status", status=422, body="invalid", times=1)
        yield wrapped(
            "an event that Svix refuses", json.dumps(refused).encode(), "200 rejected", (never,)
        )


async def demonstrate(
    url: str, sent: Iterator[Post], inject: Callable[[Fault], None] = lambda _fault: None
) -> bool:
    """Post everything, show what was answered; whether it is all as expected."""
    print(f"\n{'what':32} {'sent as':15} answered\n{'-' * 66}")
    right = True
    client = ClientBuilder().no_proxy().build()
    for post in sent:
        for fault in post.faults:
            inject(fault)
        answered = await _send(client, url, post)
        mark = "" if answered == post.expected else f"  <- expected {post.expected}"
        right &= not mark
        print(f"{post.name:32} {post.form:15} {answered}{mark}", flush=True)
    await client.close()
    return right


async def _send(client: Client, url: str, post: Post) -> str:
    """Post it; what came back, as `expected` says it."""
    request = client.post(f"{url}/notifications").headers(dict(post.headers))
    answer = await request.body_bytes(post.body).build().send()
    outcome = (await answer.json()).get("outcome", "(no outcome)")
    return f"{answer.status} {outcome}"


async def show_messages(tenants: Tenants, expected: set[tuple[str, str]]) -> bool:
    """What Svix holds; whether it is each event once. `expected`: projects and event ids."""
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
    """What reached a customer's endpoint; whether it is each message once, and signed."""
    with contextlib.suppress(TimeoutError):  # what is missing then is told below
        await endpoints.wait(count, path, _ARRIVAL_LIMIT)
    arrived = [webhook for webhook in endpoints.received if webhook.path == path]
    different = len({webhook.message_id for webhook in arrived})
    signed = sum(webhook.is_signed(secret) for webhook in arrived)
    right = different == signed == len(arrived) == count
    how = "each once, each signed" if right else f"{different} different ones, {signed} signed"
    print(f"The customer's endpoint {path} got {len(arrived)} of {count}: {how}.")
    return right


def show_commands(settings: str, project: str, event_id: str) -> None:
    """The operator's commands for what is running here."""
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
