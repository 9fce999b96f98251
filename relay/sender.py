"""The Svix adapter: makes one call through Svix's SDK, and classifies the answer.

The verdict depends on the answer as received (`svix_http.py`), not on the SDK's exception. The
SDK's own retries are off, because `delivery.py` retries, and knows the pauses and the deadline.

Sources: https://api.svix.com/docs and the SDK's code. Tests check what this module relies on.
"""

import contextlib
import email.utils
import math
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, cast

from svix.api.message import MessageAsync, MessageCreateOptions, MessageGetOptions
from svix.api.svix import ClientBase, SvixOptions
from svix.models import ApplicationIn, MessageIn

from relay.config import SVIX_CALL_SECONDS
from relay.envelope import Event
from relay.outcome import Answer, Call, Verdict
from relay.svix_http import SvixCall, SvixHttp, WireAnswer

# An error code of Svix is a word such as `not_found`. A loc is a path such as `body.payload`.
# Anything else may quote the event.
_CODE = re.compile(r"[a-z0-9_-]{1,64}")
_LOC = re.compile(r"[a-zA-Z0-9_.-]{1,100}")
_LOCS_KEPT = 3
_MESSAGE_ID = re.compile(r"[a-zA-Z0-9_.-]{1,256}")


class SvixSender(ClientBase):
    """Sends events to Svix over one pool of connections. Must be created in the running loop.

    If `server_url` is None, the token's region decides. `call_seconds` is the maximum time of a
    call.
    """

    def __init__(
        self,
        token: str,
        server_url: str | None,
        *,
        create_applications: bool,
        call_seconds: float = SVIX_CALL_SECONDS,
    ) -> None:
        super().__init__(token, SvixOptions(server_url=server_url, retry_schedule=[]))
        self._http = SvixHttp(call_seconds)
        self._create_applications = create_applications

    async def send(self, event: Event, idempotency_key: str) -> Answer:
        """Create the event's message. A second send with the same key creates no second message.

        Svix may answer that it does not know the application. If the relay creates applications,
        each send asks Svix to create a missing one. Svix then gives this answer only while another
        send is creating it. That passes, so the answer counts as UNAVAILABLE. If the relay does not
        create applications, the answer counts as REJECTED, with the code `unknown_application`.
        """
        message = MessageIn(event_type=event.type, event_id=event.id, payload={})
        if event.tags:
            message.tags = list(event.tags)
        if self._create_applications:
            message.application = ApplicationIn(name=event.project, uid=event.project)
        options = MessageCreateOptions(idempotency_key=idempotency_key)
        call = self._http.call(event.text)
        answer = await self._answer(
            Call.SEND, call, lambda api: api.create(event.project, message, options)
        )
        if answer.verdict is not Verdict.MISSING:
            return answer
        if self._create_applications:
            return replace(answer, verdict=Verdict.UNAVAILABLE)
        return replace(answer, verdict=Verdict.REJECTED, code="unknown_application")

    async def find(self, event: Event) -> Answer:
        """Ask for the event's message: ACCEPTED if Svix has it, MISSING if it does not."""
        options = MessageGetOptions()
        answer = await self._answer(
            Call.ASK, self._http.call(), lambda api: api.get(event.project, event.id, options)
        )
        if answer.verdict in {Verdict.BROKEN_OFF, Verdict.CONFLICT, Verdict.REJECTED}:
            # These verdicts are about a send. For an ask they say nothing about the message.
            return replace(answer, verdict=Verdict.UNAVAILABLE)
        return answer

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

    async def _answer(
        self, kind: Call, call: SvixCall, make_call: Callable[[MessageAsync], Awaitable[object]]
    ) -> Answer:
        failure = None
        try:
            await make_call(MessageAsync(self._client, cast("Any", call)))
        except Exception as error:  # noqa: BLE001 - the wire decides, not the SDK's exception
            failure = type(error).__name__
        return classify(kind, call, failure)


def classify(kind: Call, call: SvixCall, failure: str | None = None) -> Answer:
    """Classify a call's answer. `failure` names the SDK's exception, in case no answer came."""
    wire = call.answer
    if wire is None:
        return Answer(kind, Verdict.UNAVAILABLE, failure=call.failure or failure)
    value = None
    with contextlib.suppress(ValueError, RecursionError):
        value = wire.json()
    error = _Error.of(value)
    return Answer(
        kind,
        _verdict(wire, error, message_id := _message_id(value)),
        status=wire.status_code,
        code=error.code if error else None,
        locs=error.locs if error else (),
        message_id=message_id if _is_success(wire) else None,
        retry_after=_retry_after(wire.retry_after, datetime.now(UTC)),
        failure=call.failure,
    )


def _verdict(wire: WireAnswer, error: "_Error | None", message_id: str | None) -> Verdict:
    """The verdict on an answer. `error` is None if the body is not an error body of the API."""
    verdict = Verdict.UNAVAILABLE
    match wire.status_code:
        case _ if _is_success(wire):
            verdict = Verdict.ACCEPTED if message_id else Verdict.MISCONFIGURED
            if wire.body is None:
                verdict = Verdict.BROKEN_OFF
        case 429:
            verdict = Verdict.RATE_LIMITED
        case 409:
            verdict = Verdict.CONFLICT
        case 404 if error and error.code == "not_found":
            verdict = Verdict.MISSING
        case 401 | 402 | 403 | 404 | 405:
            verdict = Verdict.MISCONFIGURED
        case status if 300 <= status < 400:  # noqa: PLR2004 - redirects, by their number
            verdict = Verdict.MISCONFIGURED
        case 413:
            verdict = Verdict.REJECTED
        case 400 | 422 if error:
            verdict = Verdict.REJECTED
    return verdict


def _is_success(wire: WireAnswer) -> bool:
    return 200 <= wire.status_code < 300  # noqa: PLR2004 - HTTP's own numbers


def _message_id(value: Any) -> str | None:
    message_id = value.get("id") if isinstance(value, dict) else None
    is_valid = isinstance(message_id, str) and _MESSAGE_ID.fullmatch(message_id)
    return message_id if is_valid else None


@dataclass(frozen=True, slots=True)
class _Error:
    """What may be logged of the API's error body: its code, and the fields it finds faulty."""

    code: str | None
    locs: tuple[str, ...]

    @classmethod
    def of(cls, body: Any) -> "_Error | None":
        """Read an error body: an object with a `code`, or with a list in `detail`.

        None for any other body.
        """
        if not isinstance(body, dict):
            return None
        code, details = body.get("code"), body.get("detail")
        if isinstance(code, str) and _CODE.fullmatch(code):
            return cls(code, ())
        if isinstance(details, list) and details and all(isinstance(d, dict) for d in details):
            locs = (".".join(map(str, d["loc"])) for d in details if isinstance(d.get("loc"), list))
            return cls(None, tuple(loc for loc in locs if _LOC.fullmatch(loc))[:_LOCS_KEPT])
        return None


def _retry_after(text: str | None, now: datetime) -> float | None:
    """Seconds to wait, from either form of the header; None if it is missing or not valid.

    Source: https://www.rfc-editor.org/rfc/rfc9110#field.retry-after
    """
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = (email.utils.parsedate_to_datetime(text) - now).total_seconds()
        except (TypeError, ValueError):  # not a date, or a date without a time zone
            return None
    return seconds if 0 <= seconds < math.inf else None
