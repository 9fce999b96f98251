"""An HTTP client for Svix's SDK. It has the methods of httpx's client that the SDK uses.

The work is done by Rust's reqwest. A call costs a third of aiohttp's processor time and a twentieth
of httpx's.

Each call keeps the answer as received, because the SDK raises parsing errors for bodies that it
does not expect.

Proxies come from the environment (`HTTPS_PROXY`, `NO_PROXY`, ...). The client trusts certifi's
certificates and the system's. `SSL_CERT_FILE` replaces the system's.
"""

import json
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import certifi
from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import PyreqwestError, RequestTimeoutError

_KEEP_ALIVE_SECONDS = 50.0
"""How long an idle connection is kept. A load balancer usually closes it after a minute."""

_LONGEST_ANSWER = 4 * 1024 * 1024
"""Bytes. The answer to a send has a few hundred, the largest page of a listing a million."""

_EMPTY_PAYLOAD = b'"payload":{}'
"""The text with which the SDK writes an empty payload. The event's text replaces the `{}`."""


@dataclass(slots=True)
class WireAnswer:
    """An answer. It has the attributes of httpx's response that the SDK uses."""

    status_code: int
    retry_after: str | None
    """The `Retry-After` header."""
    body: bytes | None = None
    """None if the body broke off. At most `_LONGEST_ANSWER` bytes are read."""

    def json(self) -> Any:
        """The body's value. Raises `ValueError` if the body is missing or is not JSON."""
        if self.body is None:
            raise ValueError("the answer broke off")
        return json.loads(self.body)


class SvixHttp:
    """A pool of connections to Svix. Must be created in the running loop, and closed.

    `call_seconds` is the maximum time of a call, from connecting to the last byte.
    """

    def __init__(self, call_seconds: float) -> None:
        self._client = (
            ClientBuilder()
            .follow_redirects(enable=False)
            .timeout(timedelta(seconds=call_seconds))
            .pool_idle_timeout(timedelta(seconds=_KEEP_ALIVE_SECONDS))
            .add_root_certificate_pem(Path(certifi.where()).read_bytes())
            .build()
        )
        self._call_seconds = call_seconds

    def call(self, payload: bytes | None = None) -> "SvixCall":
        """One call. Pass it to a class of the SDK as its `httpx` client.

        `payload` replaces the empty payload in the body that the SDK sends.
        """
        return SvixCall(self._client, self._call_seconds, payload)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


class SvixCall:
    """One call on the wire. `SvixHttp.call` creates it."""

    def __init__(self, client: Client, seconds: float, payload: bytes | None) -> None:
        self._client = client
        self._seconds = seconds
        self._payload = payload
        self.answer: WireAnswer | None = None
        """The answer, as far as it has been received. None until the status has arrived."""
        self.failure: str | None = None
        """Why there is no complete answer, such as `ConnectError` or `no answer in 10 s`."""

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: dict[str, str],
        params: dict[str, str] | None = None,
        content: bytes | None = None,
        **_: object,  # the SDK's timeout and redirects: the client has its own settings for both
    ) -> WireAnswer:
        """Make the call. Raises `PyreqwestError`, which the SDK passes on."""
        headers.pop("content-length", None)  # the client computes it, after the payload is put in
        query = f"?{urlencode(params)}" if params else ""  # the client's own encoding takes 0.1 ms
        request = self._client.request(method, url + query).headers(headers)
        if content is not None:
            request = request.body_bytes(_replace_payload(content, self._payload))
        # Without buffering, the status is known as soon as it comes, even if the body breaks off.
        try:
            async with request.streamed_read_buffer_limit(0).build_streamed() as response:
                answer = WireAnswer(response.status, response.get_header("retry-after"))
                self.answer = answer
                body = await response.body_reader.read(_LONGEST_ANSWER)
        except RequestTimeoutError:
            self.failure = f"no answer in {self._seconds:g} s"
            raise
        except PyreqwestError as error:
            self.failure = "the answer broke off" if self.answer else type(error).__name__
            raise
        answer.body = b"" if body is None else body.to_bytes()
        return answer


def _replace_payload(content: bytes, payload: bytes | None) -> bytes:
    if payload is None:
        return content
    before, found, after = content.partition(_EMPTY_PAYLOAD)
    if not found:
        raise ValueError("the SDK has changed how it writes an empty payload")
    return b"".join((before, _EMPTY_PAYLOAD[:-2], payload, after))
