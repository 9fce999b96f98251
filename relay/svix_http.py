"""The wire beneath Svix's SDK: what the SDK uses of httpx's client, done by Rust's reqwest.

It costs an event a third of what aiohttp does and a twentieth of what httpx's own client does,
and loads in a hundredth of the time. Each call keeps what came over the wire, whatever the SDK
makes of it: the SDK raises parsing errors for bodies it does not expect.

Proxies are the environment's (`HTTPS_PROXY`, `NO_PROXY`, ...). Trusted are certifi's certificates
and the system's, or those of `SSL_CERT_FILE` instead of the system's.
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

_KEEP_ALIVE = timedelta(seconds=50)
"""Idle connections are kept for the next burst, but not past a load balancer's usual minute."""

_LONGEST_ANSWER = 4 * 1024 * 1024
"""Bytes. An answer about an event has a few hundred, the longest page of a listing a megabyte."""

_PLACE = b'"payload":{}'
"""How the SDK writes an empty payload: there the event's own text goes."""


@dataclass(slots=True)
class WireAnswer:
    """What came back: what the SDK uses of httpx's response, and the rest that matters."""

    status_code: int
    retry_after: str | None
    """The header of this name."""
    body: bytes | None = None
    """None where it broke off; cut off where it is longer than any answer of the API."""

    def json(self) -> Any:
        """The body's value. Raises `ValueError` where it is not JSON, or not there."""
        if self.body is None:
            raise ValueError("the answer broke off")
        return json.loads(self.body)


class SvixHttp:
    """A pool of connections to Svix. To be built in the running loop, and closed.

    `call_seconds` is the longest one call may take, from connecting to the last byte.
    """

    def __init__(self, call_seconds: float) -> None:
        self._client = (
            ClientBuilder()
            .follow_redirects(enable=False)
            .timeout(timedelta(seconds=call_seconds))
            .pool_idle_timeout(_KEEP_ALIVE)
            .add_root_certificate_pem(Path(certifi.where()).read_bytes())
            .build()
        )
        self._call_seconds = call_seconds

    def call(self, payload: bytes | None = None) -> "SvixCall":
        """One call, to be handed to a class of the SDK as its `httpx` client.

        `payload` takes the place of an empty one in what the SDK sends.
        """
        return SvixCall(self._client, self._call_seconds, payload)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


class SvixCall:
    """One call on the wire; made by `SvixHttp.call`."""

    def __init__(self, client: Client, seconds: float, payload: bytes | None) -> None:
        self._client = client
        self._seconds = seconds
        self._payload = payload
        self.answer: WireAnswer | None = None
        """What has come so far."""
        self.failure: str | None = None
        """Why there is no whole answer, such as `ConnectError` or `no answer in 10 s`."""

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: dict[str, str],
        params: dict[str, str] | None = None,
        content: bytes | None = None,
        **_: object,  # the time-out, which here is of the whole call, and redirects: none followed
    ) -> WireAnswer:
        """Raises `PyreqwestError`, which the SDK passes on."""
        headers.pop("content-length", None)  # the client counts what is sent in the end
        query = f"?{urlencode(params)}" if params else ""  # the client's own takes 0.1 ms
        request = self._client.request(method, url + query).headers(headers)
        if content is not None:
            request = request.body_bytes(_spliced(content, self._payload))
        # Nothing is buffered: the status is to be known as soon as it is there.
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


def _spliced(content: bytes, payload: bytes | None) -> bytes:
    if payload is None:
        return content
    before, place, after = content.partition(_PLACE)
    if not place:
        raise ValueError("the SDK writes an empty payload in another way")
    return b"".join((before, _PLACE[:-2], payload, after))
