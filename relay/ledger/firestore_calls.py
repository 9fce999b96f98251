"""Sets a timeout for calls to Firestore, and turns their failures into `LedgerUnavailable`."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from google.api_core.exceptions import (
    DeadlineExceeded,
    FailedPrecondition,
    GoogleAPICallError,
    GoogleAPIError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ServiceUnavailable,
    Unauthenticated,
)
from google.auth.exceptions import GoogleAuthError
from google.cloud.firestore import AsyncQuery, DocumentSnapshot
from grpc import RpcError

from relay.ledger import LEDGER_CALL_SECONDS, LedgerMisconfigured, LedgerUnavailable
from relay.ledger.batches import Batches, Closed
from relay.ledger.patience import patiently

_PAGE = 500  # documents

_PAGE_SECONDS = 30.0
"""The timeout of one page, which usually takes a tenth of a second. Deliveries read pages in one
rare case only, while they park a letter (`firestore_letters.py`)."""

# Part of gRPC's message if the credentials give no token. Its status is UNAVAILABLE then.
_NO_TOKEN = "metadata from plugin failed"  # noqa: S105 - no secret


class Calls:
    """Sets timeouts. If a call times out, `batches.last_failure` may say why."""

    def __init__(self, project: str, batches: Batches) -> None:
        self._project = project
        self._batches = batches

    @contextlib.asynccontextmanager
    async def answering(self, limit: float | None = None) -> AsyncIterator[None]:
        """Raise `LedgerUnavailable` if the calls in this context fail, or take too long.

        `limit` is in seconds; None: `LEDGER_CALL_SECONDS`.
        """
        seconds = limit or LEDGER_CALL_SECONDS
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            failure = self._batches.last_failure
            if failure is None or isinstance(failure, DeadlineExceeded):
                raise LedgerUnavailable(f"Firestore did not answer within {seconds:g} s") from None
            raise self._failed(failure) from None
        except (GoogleAPIError, GoogleAuthError, RpcError) as failure:
            raise self._failed(failure) from None
        except Closed:
            raise LedgerUnavailable("the ledger was closed") from None

    def _failed(self, failure: Exception) -> LedgerUnavailable:
        """Build the exception, with the failure's code and what to do.

        The failure's message is left out, because it may quote what was written.
        """
        name = type(failure).__name__
        if isinstance(failure, GoogleAPICallError) and failure.grpc_status_code:
            name = failure.grpc_status_code.name
        advice = self._advice(failure)
        if advice is not None:
            return LedgerMisconfigured(f"Firestore: {name}: check {advice}")
        if isinstance(failure, InvalidArgument):
            return LedgerUnavailable(f"Firestore: {name}: the document is not valid")
        return LedgerUnavailable(f"Firestore: {name}: try again later")

    def _advice(self, failure: Exception) -> str | None:
        """What a person should check; None if there is nothing to check."""
        project = self._project
        match failure:
            case PermissionDenied():
                return (
                    f"that {project} is the right project, and that the service account has"
                    " roles/datastore.user in it"
                )
            case NotFound():
                return (
                    f"that {project} is the right project, and that it has the database that"
                    " FIRESTORE_DATABASE names"
                )
            case FailedPrecondition():
                return f"that the database in {project} is in native mode, and has its indexes"
            case Unauthenticated() | GoogleAuthError():
                return "the credentials: locally, run `gcloud auth application-default login`"
            case ServiceUnavailable() if _NO_TOKEN in str(failure):
                return "the credentials: locally, run `gcloud auth application-default login`"
        return None


async def pages(query: AsyncQuery, calls: Calls) -> AsyncIterator[DocumentSnapshot[Any]]:
    """A query's documents. Holds one page at a time, and retries a page that fails."""

    async def page() -> list[DocumentSnapshot[Any]]:
        async with calls.answering(_PAGE_SECONDS):
            return await query.limit(_PAGE).get(retry=None)

    while True:
        snapshots = await patiently(page)
        for snapshot in snapshots:
            yield snapshot
        if len(snapshots) < _PAGE:
            return
        query = query.start_after(snapshots[-1])
