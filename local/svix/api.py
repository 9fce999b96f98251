"""Svix's API over the store: only the calls that the relay, its commands and the tests make.

Each handler reads a request and answers it, or raises `wire.Refusal`.
"""

import base64
import json
import secrets
from collections.abc import Callable
from datetime import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from local.svix import ids, listing, wire
from local.svix.dispatch import Dispatcher
from local.svix.gate import Gate, Handler
from local.svix.store import Application, Endpoint, Store

_SECRET_BYTES = 24


class Api:
    """The handlers. `endpoint_for` gives the URL of a new application's first endpoint, if any."""

    def __init__(
        self,
        store: Store,
        gate: Gate,
        dispatcher: Dispatcher,
        now: Callable[[], datetime],
        endpoint_for: Callable[[str], str | None],
    ) -> None:
        self._store = store
        self._gate = gate
        self._dispatcher = dispatcher
        self._now = now
        self._endpoint_for = endpoint_for

    def routes(self) -> list[Route]:
        """The routes, each behind the gate."""
        app = "/app/{app}"
        message, endpoint = f"{app}/msg/{{message}}", f"{app}/endpoint/{{endpoint}}"
        table: list[tuple[str, str, Handler]] = [
            ("POST", "/app", self._create_application),
            ("GET", "/app", self._list_applications),
            ("GET", app, self._get_application),
            ("DELETE", app, self._delete_application),
            ("POST", f"{app}/msg", self._create_message),
            ("GET", f"{app}/msg", self._list_messages),
            ("GET", message, self._get_message),
            ("GET", f"{message}/endpoint", self._list_destinations),
            ("POST", f"{message}/endpoint/{{endpoint}}/resend", self._resend),
            ("GET", f"{app}/attempt/msg/{{message}}", self._list_attempts_of_message),
            ("GET", f"{app}/attempt/endpoint/{{endpoint}}", self._list_attempts_at_endpoint),
            ("POST", f"{app}/endpoint", self._create_endpoint),
            ("GET", f"{app}/endpoint", self._list_endpoints),
            ("GET", endpoint, self._get_endpoint),
            ("PATCH", endpoint, self._patch_endpoint),
            ("DELETE", endpoint, self._delete_endpoint),
            ("GET", f"{endpoint}/secret", self._get_secret),
            ("POST", "/event-type", self._create_event_type),
            ("GET", "/event-type", self._list_event_types),
            ("DELETE", "/event-type/{name}", self._delete_event_type),
        ]
        return [
            Route(f"/api/v1{path}", self._gate.guarded(handler), methods=[method])
            for method, path, handler in table
        ]

    @property
    def _rules(self) -> wire.Rules:
        return wire.RULES[self._gate.behaviour.kind]

    # -- applications

    async def _create_application(self, request: Request) -> Response:
        body, _ = wire.read_object(await _body(request))
        new = wire.NewApplication.read(body)
        known = self._store.find_application(new.uid) if new.uid else None
        if known and request.query_params.get("get_if_exists") == "true":
            return JSONResponse(wire.application_out(known))
        return JSONResponse(wire.application_out(self._new_application(new)), 201)

    def _new_application(self, new: wire.NewApplication) -> Application:
        application = self._store.create_application(new.uid, new.name, self._now())
        if url := self._endpoint_for(new.uid or application.id):
            self._add_endpoint(application, {"url": url})
        return application

    async def _list_applications(self, request: Request) -> Response:
        page = listing.plain(self._store.applications, _query(request, ascending=True))
        shown = (wire.application_out(self._store.application(name)) for name in page.ids)
        return _listed(page, [json.dumps(application) for application in shown])

    async def _get_application(self, request: Request) -> Response:
        return JSONResponse(wire.application_out(self._application(request)))

    async def _delete_application(self, request: Request) -> Response:
        self._store.delete_application(request.path_params["app"])
        return Response(status_code=204)

    def _application(self, request: Request) -> Application:
        return self._store.application(request.path_params["app"])

    # -- messages

    async def _create_message(self, request: Request) -> Response:
        new = wire.read_message(await _body(request), self._rules)
        app = request.path_params["app"]
        if not app.startswith("app_"):
            wire.check_name(app, "app_id_or_uid", place="path")
        application = self._store.find_application(app)
        if application is None:
            if new.application is None:
                raise wire.not_found("Application not found")
            new.application.check_uid(app)
            application = self._new_application(new.application)
        for_ever = self._rules.event_ids_for_ever
        message = self._store.add_message(application, new, for_ever=for_ever, now=self._now())
        if not getattr(request.state, "is_unqueued", False):
            self._dispatcher.send(message)
        out = wire.message_out(message, self._rules, with_content=_with_content(request))
        return _json(out, 202)

    async def _get_message(self, request: Request) -> Response:
        message = self._store.message(*_path(request, "app", "message"))
        with_content = _with_content(request)
        return _json(wire.message_out(message, self._rules, with_content=with_content))

    async def _list_messages(self, request: Request) -> Response:
        application = self._application(request)
        held: list[str] = application.messages
        if tag := request.query_params.get("tag") if self._rules.shows_tags else None:
            held = [name for name in held if tag in application.by_id[name].tags]
        page = self._by_time(request, held, "msg_")
        with_content = _with_content(request)
        shown = [
            wire.message_out(application.by_id[name], self._rules, with_content=with_content)
            for name in page.ids
        ]
        return _listed(page, shown)

    def _by_time(self, request: Request, held: list[str], prefix: str) -> listing.Page:
        try:
            return listing.by_time(held, prefix, _query(request), self._now())
        except ValueError:
            raise wire.invalid(
                "iterator", "__all__", message="Invalid id.", place="query"
            ) from None

    # -- attempts

    async def _list_attempts_of_message(self, request: Request) -> Response:
        message = self._store.message(*_path(request, "app", "message"))
        held = self._store.attempts_of_message(message.id)
        if name := request.query_params.get("endpoint_id"):
            endpoint = self._store.endpoint(request.path_params["app"], name)
            held = [i for i in held if self._store.attempt(i).endpoint_id == endpoint.id]
        return self._attempts(request, held)

    async def _list_attempts_at_endpoint(self, request: Request) -> Response:
        endpoint = self._store.endpoint(*_path(request, "app", "endpoint"))
        return self._attempts(request, self._store.attempts_at_endpoint(endpoint.id))

    def _attempts(self, request: Request, held: list[str]) -> Response:
        if status := request.query_params.get("status"):
            held = [i for i in held if str(wire.status_of(self._store.attempt(i))) == status]
        page = self._by_time(request, held, "atmpt_")
        attempts = map(self._store.attempt, page.ids)
        return _listed(page, [json.dumps(wire.attempt_out(attempt)) for attempt in attempts])

    async def _list_destinations(self, request: Request) -> Response:
        """The endpoints to which a message was sent, each with its last attempt's status."""
        message = self._store.message(*_path(request, "app", "message"))
        endpoints = self._application(request).endpoints
        attempts = self._store.last_attempts(message.id)
        query = _query(request, ascending=True)
        page = listing.plain(sorted(attempts), query)
        shown = (wire.destination_out(endpoints[name], attempts[name]) for name in page.ids)
        return _listed(page, [json.dumps(destination) for destination in shown])

    async def _resend(self, request: Request) -> Response:
        message = self._store.message(*_path(request, "app", "message"))
        endpoint = self._store.endpoint(*_path(request, "app", "endpoint"))
        self._dispatcher.resend(message, endpoint)
        return JSONResponse({}, 202)

    # -- endpoints

    async def _create_endpoint(self, request: Request) -> Response:
        application = self._application(request)
        endpoint = self._add_endpoint(application, wire.read_endpoint(await _body(request)))
        return JSONResponse(wire.endpoint_out(endpoint), 201)

    def _add_endpoint(self, application: Application, fields: dict[str, Any]) -> Endpoint:
        if "url" not in fields:
            raise wire.invalid("", "", message="missing field `url`", kind=wire.NOT_READ)
        now = self._now()
        secret = base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()
        endpoint = Endpoint(ids.new("ep_", now), f"whsec_{secret}", now)
        self._store.change_endpoint(endpoint, fields)
        application.endpoints[endpoint.id] = endpoint
        return endpoint

    async def _list_endpoints(self, request: Request) -> Response:
        endpoints = self._application(request).endpoints
        held = sorted(name for name in endpoints if not endpoints[name].is_deleted)
        page = listing.plain(held, _query(request))
        shown = (wire.endpoint_out(endpoints[name]) for name in page.ids)
        return _listed(page, [json.dumps(endpoint) for endpoint in shown])

    async def _get_endpoint(self, request: Request) -> Response:
        endpoint = self._store.endpoint(*_path(request, "app", "endpoint"))
        return JSONResponse(wire.endpoint_out(endpoint))

    async def _patch_endpoint(self, request: Request) -> Response:
        endpoint = self._store.endpoint(*_path(request, "app", "endpoint"))
        self._store.change_endpoint(endpoint, wire.read_endpoint(await _body(request)))
        return JSONResponse(wire.endpoint_out(endpoint))

    async def _delete_endpoint(self, request: Request) -> Response:
        endpoint = self._store.endpoint(*_path(request, "app", "endpoint"))
        endpoint.is_deleted = True
        return Response(status_code=204)

    async def _get_secret(self, request: Request) -> Response:
        endpoint = self._store.endpoint(*_path(request, "app", "endpoint"))
        return JSONResponse({"key": endpoint.secret})

    # -- event types

    async def _create_event_type(self, request: Request) -> Response:
        body, _ = wire.read_object(await _body(request))
        name = wire.check_name(body.get("name"), "name")
        if name in self._store.event_types:
            message = "An event_type with this name already exists"
            raise wire.error(409, "event_type_exists", message)
        self._store.event_types[name] = self._now()
        return JSONResponse(wire.event_type_out(name, self._store.event_types[name]), 201)

    async def _list_event_types(self, request: Request) -> Response:
        types = self._store.event_types
        page = listing.plain(sorted(types), _query(request, ascending=True))
        shown = (wire.event_type_out(name, types[name]) for name in page.ids)
        return _listed(page, [json.dumps(event_type) for event_type in shown])

    async def _delete_event_type(self, request: Request) -> Response:
        if self._store.event_types.pop(request.path_params["name"], None) is None:
            raise wire.not_found()
        return Response(status_code=204)


async def _body(request: Request) -> bytes:
    """A request's body. Refuses one that is larger than Svix reads."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > wire.LARGEST_BODY:
            raise wire.too_large()
    return bytes(body)


def _path(request: Request, *names: str) -> tuple[str, ...]:
    return tuple(request.path_params[name] for name in names)


def _with_content(request: Request) -> bool:
    return request.query_params.get("with_content", "true") == "true"


def _query(request: Request, *, ascending: bool = False) -> listing.Query:
    """A listing's query. `ascending` says which order is the default."""
    given = request.query_params
    try:
        query = listing.Query(
            int(given.get("limit", listing.PAGE)),
            given.get("iterator"),
            _time(given.get("before")),
            _time(given.get("after")),
            given.get("order", "ascending" if ascending else "descending") == "ascending",
        )
    except ValueError as fault:
        raise wire.error(400, "generic_error", f"Failed to deserialize query: {fault}") from None
    if query.limit > listing.LARGEST_PAGE:
        message = f"Given limit must not exceed {listing.LARGEST_PAGE}"
        raise wire.invalid("limit", "limit", message=message, place="query")
    return query


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _json(text: str, status: int = 200) -> Response:
    return Response(text, status, media_type="application/json")


def _listed(page: listing.Page, items: list[str]) -> Response:
    return _json(wire.listing_out(page, items))
