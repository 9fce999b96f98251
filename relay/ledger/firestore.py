"""The ledger in Firestore: a document per event in `events`, the dead letters in `dead_letters`.

A first claim is one `create()` and a settle one conditional update: transactions of one commit,
without a read. A takeover is a conditional update as well: the record that was read must still be
the one that is written. Nothing holds a lock that would outlive a worker, and nothing is queried,
so no index is needed.

The client library repeats a write whose answer was lost, so an error may answer a write that
landed. Every claim has a token of its own: who finds it in the document has written it.

Sources: https://cloud.google.com/firestore/docs/manage-data/add-data and
https://cloud.google.com/firestore/docs/reference/rpc/google.firestore.v1#precondition
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import asdict, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from google.api_core.exceptions import (
    AlreadyExists,
    Conflict,
    FailedPrecondition,
    GoogleAPICallError,
    GoogleAPIError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
)
from google.auth.exceptions import GoogleAuthError
from google.cloud.firestore import (
    SERVER_TIMESTAMP,
    AsyncClient,
    AsyncQuery,
    DocumentSnapshot,
    FieldFilter,
)
from google.cloud.firestore_v1.types import (
    BatchGetDocumentsRequest,
    BatchGetDocumentsResponse,
    CommitRequest,
    CommitResponse,
)
from grpc import RpcError
from proto.datetime_helpers import DatetimeWithNanoseconds

from relay.envelope import Event
from relay.ledger import (
    DEAD_LETTER_LIFETIME,
    LEDGER_TIMEOUT,
    RECORD_LIFETIME,
    Claim,
    ClaimLost,
    DeadLetter,
    Duplicate,
    InProgress,
    LedgerUnavailable,
    Record,
    State,
    key_of,
)

# What answers a write whose condition does not hold (any more), or, as Aborted (a Conflict), one
# that met another writer: https://cloud.google.com/firestore/docs/understand-error-codes
_CONTESTED = (Conflict, FailedPrecondition, NotFound)

_PAGE = 500  # documents

# The protobufs themselves, which the library's classes wrap.
_CommitRequest = CommitRequest.pb()
_BatchGetDocumentsRequest = BatchGetDocumentsRequest.pb()

_LISTED = [field.name for field in fields(DeadLetter) if field.name not in {"data", "attributes"}]
_RESTATED = ("data", "attributes", "reason", "detail", "svix_status", "svix_code", "discarded")


class FirestoreLedger:
    """A ledger that any number of instances share; leases are judged by Firestore's clock."""

    def __init__(self, client: AsyncClient, lease: timedelta) -> None:
        self._client = client
        self._lease = lease
        self._events = client.collection("events")
        self._dead_letters = client.collection("dead_letters")
        # The client generated from Firestore's API, beneath the library's documents.
        self._api: Any = client._firestore_api  # noqa: SLF001 - the ledgers' contract runs through it
        self._metadata = client._rpc_metadata  # noqa: SLF001 - the ledgers' contract runs through it
        self._database = client._database_string  # noqa: SLF001 - the ledgers' contract runs through it

    @classmethod
    def connect(cls, project: str | None, database: str, lease: timedelta) -> Self:
        """A ledger with a client of its own, which belongs to the running event loop.

        Credentials, and a `project` of None, are Google's to find; FIRESTORE_EMULATOR_HOST too.
        """
        return cls(AsyncClient(project=project, database=database), lease)

    async def claim(self, event: Event) -> Claim | Duplicate | InProgress:
        """Take the right to send this event, or learn why not."""
        key = key_of(event.project, event.id)
        token = secrets.token_hex(16)
        async with self._answering():
            while True:
                # The loop ends: it goes round only when another writer has just got ahead of us.
                with contextlib.suppress(Conflict):
                    version = await self._write(key, _first_claim(event, token))
                    return Claim(key, token, version, 1, timedelta(0))
                record = await self._read(key)
                if record is None:
                    continue
                if record.claim == token:
                    return Claim(key, token, record.updated_at, record.attempts, record.age)
                if refusal := record.refusal(event, self._lease):
                    return refusal
                attempts = record.attempts + 1
                takeover = {
                    "state": State.CLAIMED.value,
                    "claim": token,
                    "attempts": attempts,
                    "pubsub_message_id": event.source.message_id,
                    "expires_at": _from_now(RECORD_LIFETIME),
                }
                with contextlib.suppress(*_CONTESTED):
                    version = await self._write(key, takeover, record.updated_at)
                    return Claim(key, token, version, attempts, record.age)

    async def complete(self, claim: Claim, svix_message_id: str | None) -> None:
        """Record the event as delivered. Raises `ClaimLost` where the claim is no longer ours."""
        delivered = {"delivered_at": SERVER_TIMESTAMP, "svix_message_id": svix_message_id}
        await self._settle(claim, State.DELIVERED, delivered)

    async def release(self, claim: Claim) -> None:
        """Let the next delivery claim it at once. Raises `ClaimLost` as `complete` does."""
        await self._settle(claim, State.RELEASED, {})

    async def park(self, letter: DeadLetter) -> None:
        """Store a dead letter under its id; parking it again changes nothing."""
        document = self._dead_letters.document(letter.id)
        times = {"parked_at": SERVER_TIMESTAMP, "expires_at": _from_now(DEAD_LETTER_LIFETIME)}
        async with self._answering():
            with contextlib.suppress(AlreadyExists):
                await document.create(asdict(letter) | times)

    async def record(self, key: str) -> Record | None:
        """One event's record."""
        async with self._answering():
            return await self._read(key)

    async def count(self) -> int:
        """How many records there are; billed as a read for each thousand."""
        async with self._answering():
            counted = await self._events.count().get()  # type: ignore[no-untyped-call] # published so
        return int(counted[0][0].value)

    async def records(self) -> AsyncIterator[Record]:
        """All records, ordered by key: each is a read on the bill."""
        async for snapshot in self._pages(self._events.order_by("__name__")):
            yield _record(_fields(snapshot), snapshot.update_time, snapshot.read_time)

    async def mend(self, record: Record, state: State, svix_message_id: str | None = None) -> None:
        """Write what is known of the event by now. Raises `ClaimLost` where it was touched."""
        delivered_at = SERVER_TIMESTAMP if state is State.DELIVERED else None
        known = {"delivered_at": delivered_at, "svix_message_id": svix_message_id}
        as_read = Claim(record.key, record.claim, record.updated_at, record.attempts, record.age)
        await self._settle(as_read, state, known)

    async def dead_letter(self, letter_id: str) -> DeadLetter | None:
        """One dead letter, whole."""
        async with self._answering():
            snapshot = await self._dead_letters.document(letter_id).get()
        return _letter(snapshot) if snapshot.exists else None

    async def dead_letters(
        self, prefix: str = "", *, project: str | None = None, event_id: str | None = None
    ) -> AsyncIterator[tuple[str, DeadLetter]]:
        """Those whose id begins so, each with its id, without `data` and `attributes`."""
        # Conditions of equality alone: they need no index that is not there by itself.
        query = self._dead_letters.select(_LISTED).order_by("__name__")
        for name, value in (("project", project), ("event_id", event_id)):
            if value is not None:
                query = query.where(filter=FieldFilter(name, "==", value))
        if prefix:
            ids = self._dead_letters
            query = query.start_at({"__name__": ids.document(prefix)})
            query = query.end_before({"__name__": ids.document(f"{prefix}g")})
        async for snapshot in self._pages(query):
            yield snapshot.id, _letter(snapshot)

    async def restate(self, letter_id: str, letter: DeadLetter) -> None:
        """Say anew why the letter is there, or that it was discarded."""
        told = asdict(letter)
        changes = {name: told[name] for name in _RESTATED}
        async with self._answering():
            with contextlib.suppress(NotFound):
                await self._dead_letters.document(letter_id).update(changes)

    async def remove(self, letter_id: str) -> None:
        """Delete a dead letter; one that is not there is no fault."""
        async with self._answering():
            await self._dead_letters.document(letter_id).delete()

    async def close(self) -> None:
        """Free the connections."""
        # The client has no close of its own (https://github.com/googleapis/python-firestore).
        await self._api.transport.close()

    async def _settle(self, claim: Claim, state: State, fields: dict[str, Any]) -> None:
        update = {"state": state.value, "expires_at": _from_now(RECORD_LIFETIME), **fields}
        async with self._answering():
            while True:
                with contextlib.suppress(*_CONTESTED):
                    await self._write(claim.key, update, claim.version)
                    return
                record = await self._read(claim.key)
                if record and (record.claim, record.state) == (claim.token, state):
                    return
                if record is None or record.updated_at != claim.version:
                    raise ClaimLost(f"{claim.key} is another delivery's by now, or gone")
                # It is as our claim left it: the write was only crowded out.

    async def _pages(self, query: AsyncQuery) -> AsyncIterator[DocumentSnapshot[Any]]:
        while True:
            async with self._answering():
                page = await query.limit(_PAGE).get()
            for snapshot in page:
                yield snapshot
            if len(page) < _PAGE:
                return
            query = query.start_after(page[-1])

    async def _write(self, key: str, record: dict[str, Any], version: Any = None) -> object:
        """Write into an event's document, if it is still at `version` (None: if there is none).

        Returns its new version. The library's own client, but plain protobufs: a `create` and an
        `update` of its documents take twice the processor time, most of it in wrappers.
        """
        request = _CommitRequest(database=self._database)
        write = request.writes.add()
        write.update.name = self._name(key)
        for name, value in record.items():
            if value is SERVER_TIMESTAMP:
                write.update_transforms.add(field_path=name, set_to_server_value="REQUEST_TIME")
                continue
            _set(write.update.fields[name], value)
            if version is not None:
                write.update_mask.field_paths.append(name)
        if version is None:
            write.current_document.exists = False
        else:
            write.current_document.update_time.CopyFrom(version.timestamp_pb())
        answer = await self._api.commit(CommitRequest.wrap(request), metadata=self._metadata)
        return _instant(CommitResponse.pb(answer).write_results[0].update_time)

    async def _read(self, key: str) -> Record | None:
        """An event's record, as plain protobufs too: no query, and Firestore's own time of it."""
        request = _BatchGetDocumentsRequest(database=self._database, documents=[self._name(key)])
        wrapped = BatchGetDocumentsRequest.wrap(request)
        async for answer in await self._api.batch_get_documents(wrapped, metadata=self._metadata):
            got = BatchGetDocumentsResponse.pb(answer)
            if got.HasField("found"):
                stored = {name: _get(field) for name, field in got.found.fields.items()}
                updated_at, read_at = got.found.update_time, got.read_time
                return _record(stored, _instant(updated_at), _instant(read_at))
        return None

    def _name(self, key: str) -> str:
        return f"{self._database}/documents/{self._events.id}/{key}"

    @contextlib.asynccontextmanager
    async def _answering(self) -> AsyncIterator[None]:
        """The bounds of one call: what Firestore does within ends as a `LedgerUnavailable`."""
        try:
            async with asyncio.timeout(LEDGER_TIMEOUT.total_seconds()):
                yield
        except TimeoutError:
            limit = f"{LEDGER_TIMEOUT.total_seconds():g} s"
            raise LedgerUnavailable(f"Firestore did not answer within {limit}") from None
        except (GoogleAPIError, GoogleAuthError, RpcError) as failure:
            # Its text stays out: it may quote what was written.
            raise LedgerUnavailable(self._words_for(failure)) from None

    def _words_for(self, failure: Exception) -> str:
        name = type(failure).__name__
        if isinstance(failure, GoogleAPICallError) and failure.grpc_status_code:
            name = failure.grpc_status_code.name
        project = self._client.project
        match failure:
            case PermissionDenied():
                advice = f"check that the service account has roles/datastore.user in {project}"
            case Unauthenticated() | GoogleAuthError():
                advice = "check the credentials: `gcloud auth application-default login`, locally"
            case NotFound():
                advice = f"check that {project} has the database that FIRESTORE_DATABASE names"
            case InvalidArgument():
                advice = "what was to be written is larger than a document, or not valid"
            case _:
                advice = "try again later"
        return f"Firestore answered {name}: {advice}"


def _first_claim(event: Event, token: str) -> dict[str, Any]:
    return {
        "project": event.project,
        "event_id": event.id,
        "event_type": event.type,
        "state": State.CLAIMED.value,
        "claim": token,
        "attempts": 1,
        "payload_sha256": event.payload_sha256,
        "first_claimed_at": SERVER_TIMESTAMP,
        "pubsub_message_id": event.source.message_id,
        "expires_at": _from_now(RECORD_LIFETIME),
    }


def _set(field: Any, value: str | int | datetime | None) -> None:
    match value:
        case None:
            field.null_value = 0
        case str():
            field.string_value = value
        case int():
            field.integer_value = value
        case datetime():
            field.timestamp_value.FromDatetime(value)


def _get(field: Any) -> Any:
    """What `_set` has set, and times."""
    kind = field.WhichOneof("value_type")
    match kind:
        case "null_value":
            return None
        case "timestamp_value":
            return _instant(field.timestamp_value)
    return getattr(field, kind)


def _instant(timestamp: Any) -> DatetimeWithNanoseconds:
    """Exact: a version to write against has nanoseconds."""
    return DatetimeWithNanoseconds.from_timestamp_pb(timestamp)


def _record(stored: dict[str, Any], updated_at: datetime, read_at: datetime) -> Record:
    return Record(
        project=stored["project"],
        event_id=stored["event_id"],
        event_type=stored["event_type"],
        state=State(stored["state"]),
        claim=stored["claim"],
        attempts=stored["attempts"],
        payload_sha256=stored["payload_sha256"],
        first_claimed_at=stored["first_claimed_at"],
        updated_at=updated_at,
        read_at=read_at,
        delivered_at=stored.get("delivered_at"),
        svix_message_id=stored.get("svix_message_id"),
        pubsub_message_id=stored.get("pubsub_message_id"),
    )


def _letter(snapshot: DocumentSnapshot[Any]) -> DeadLetter:
    stored = {"data": b"", **_fields(snapshot)}
    stored.pop("expires_at", None)
    return DeadLetter(**stored)


def _fields(snapshot: DocumentSnapshot[Any]) -> dict[str, Any]:
    return snapshot.to_dict() or {}


def _from_now(lifetime: timedelta) -> datetime:
    """When TTL may delete it, by this instance's clock: that is not judged to the minute."""
    return datetime.now(UTC) + lifetime
