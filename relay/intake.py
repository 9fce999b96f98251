"""Reading a body (placeholder until the memory rules land)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping

from relay.envelope import PUSH_LIMIT, Refused, source_of
from relay.outcome import Outcome


class NotAdmitted(Exception):
    """No room."""


class Admission:
    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = headers

    async def read(self, chunks: AsyncIterator[bytes]) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(20):
                async for chunk in chunks:
                    body += chunk
                    if len(body) > PUSH_LIMIT:
                        raise Refused(Outcome.REJECTED, "too large", source_of(self._headers), code="too_large")
        except Refused:
            raise
        except Exception as failure:
            raise Refused(Outcome.INCOMPLETE, "the body broke off", source_of(self._headers)) from failure
        return bytes(body)


class Intake:
    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        pass

    @contextlib.asynccontextmanager
    async def admit(self, headers: Mapping[str, str], last_moment: float) -> AsyncIterator[Admission]:
        yield Admission(headers)
