"""The ledger in Firestore: a document per event in `events`, the dead letters in `dead_letters`.

The first claim of an event creates its record. A settle updates the record, on condition that the
record's update time is still the one that the claim's write returned. Each is one conditional
write, without a read. A later claim updates the record, on condition that the record's update time
has not changed since the claiming delivery last wrote or read the record. Firestore holds no lock
meanwhile, so a crashed worker leaves nothing but its lease.

A write whose answer was lost may have been made, and is retried. Each claim writes a random token.
If the record has our token, our write was made.

Records are queried with the composite index `state, shard, touched_at`. Dead letters are queried by
id, and with the single-field indexes on `project` and `event_id`. There is no other index
(`deploy/firestore-indexes.txt`).

Sources: https://cloud.google.com/firestore/docs/manage-data/add-data and
https://cloud.google.com/firestore/docs/reference/rpc/google.firestore.v1#precondition
"""

import contextlib
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Self

from google.api_core.exceptions import Conflict, FailedPrecondition, NotFound
from google.auth.exceptions import GoogleAuthError
from google.cloud.firestore import SERVER_TIMESTAMP, AsyncClient, FieldFilter

from relay.envelope import Event
from relay.ledger import (
    LEASE_SECONDS,
    RECORD_LIFETIME,
    SHARDS,
    Claim,
    ClaimLost,
    DeadLetter,
    Duplicate,
    InProgress,
    LedgerMisconfigured,
    Record,
    State,
    key_of,
)
from relay.ledger.batches import Batches
from relay.ledger.documents import creation, time_of, update, values_of
from relay.ledger.firestore_calls import Calls, pages
from relay.ledger.firestore_letters import Letters

# The exceptions for a write whose condition does not hold:
# https://cloud.google.com/firestore/docs/understand-error-codes
_CONTESTED = (Conflict, FailedPrecondition, NotFound)


class FirestoreLedger:
    """A ledger for any number of instances. Leases are judged by Firestore's clock."""

    def __init__(self, client: AsyncClient, lease: float) -> None:
        self._lease = lease
        self._events = client.collection("events")
        # The layer beneath the library's document classes.
        self._transport = client._firestore_api.transport  # noqa: SLF001 - private; the ledgers' tests would notice a change
        database = client._database_string  # noqa: SLF001 - private; the ledgers' tests would notice a change
        metadata = client._rpc_metadata  # noqa: SLF001 - private; the ledgers' tests would notice a change
        self._names = f"{database}/documents/{self._events.id}/"
        self.batches = Batches(self._transport.grpc_channel, database, metadata)
        self._calls = Calls(client.project, self.batches)
        self._letters = Letters(client, self._calls)

    @classmethod
    def connect(cls, project: str | None, database: str, *, lease: float = LEASE_SECONDS) -> Self:
        """A ledger with a client of its own, which belongs to the running event loop.

        `lease` is in seconds. Google's library finds the credentials and, if `project` is None, the
        project. Raises `LedgerMisconfigured` if one of them is missing. The library also reads
        FIRESTORE_EMULATOR_HOST.
        """
        try:
            return cls(AsyncClient(project=project, database=database), lease)
        except GoogleAuthError:
            raise LedgerMisconfigured(
                "Google's credentials are missing or can't be read: locally, run"
                " `gcloud auth application-default login`"
            ) from None
        except OSError:  # the library raises it if it finds no project
            raise LedgerMisconfigured(
                "nothing names the Google Cloud project: set GOOGLE_CLOUD_PROJECT"
            ) from None

    # -- one event

    async def record(self, key: str) -> Record | None:
        """One event's record; None if there is none."""
        async with self._calls.answering():
            return await self._read(key)

    async def claim(
        self, event: Event, *, previous: Claim | None = None
    ) -> Claim | Duplicate | InProgress:
        """Claim the event, or say why that is not possible."""
        key = key_of(event.project, event.id)
        token = secrets.token_hex(16)
        claimed = self._claimed(event, token)
        async with self._calls.answering():
            if previous is not None:
                # Usually no other delivery has written the record since, and no read is needed.
                with contextlib.suppress(*_CONTESTED):
                    return await self._take_over(previous, claimed)
            while True:
                # The loop repeats if another writer was faster. The timeout ends it.
                with contextlib.suppress(Conflict):
                    version = await self._create(key, event, claimed)
                    return Claim(key, token, version, 1, 0.0)
                record = await self._read(key)
                if record is None:
                    continue
                as_read = _claim_of(record)
                if record.claim == token:
                    return as_read
                is_ours = previous is not None and previous.token == record.claim
                if not (is_ours and record.state is State.CLAIMED) and (
                    denial := record.denial(event)
                ):
                    return denial
                with contextlib.suppress(*_CONTESTED):
                    return await self._take_over(as_read, claimed)

    async def complete(
        self, claim: Claim, svix_message_id: str | None, *, fanout_confirmed: bool
    ) -> None:
        """Record the event as delivered. Raises `ClaimLost` if another delivery has the claim."""
        delivered = {
            "delivered_at": SERVER_TIMESTAMP,
            "svix_message_id": svix_message_id,
            "fanout_confirmed": fanout_confirmed,
        }
        await self._settle(claim, State.DELIVERED, delivered)

    async def release(self, claim: Claim) -> Claim:
        """End the claim, so that the next delivery can claim the event immediately."""
        return await self._settle(claim, State.RELEASED, {})

    async def _settle(self, claim: Claim, state: State, settled: dict[str, Any]) -> Claim:
        values = {"state": state.value, **settled, **_touched()}
        async with self._calls.answering():
            with contextlib.suppress(*_CONTESTED):
                version = await self.batches.write(
                    update(self._names + claim.key, values, claim.version)
                )
                return _moved_on(claim, version)
            record = await self._read(claim.key)
            if record is None or (record.claim, record.state) != (claim.token, state):
                raise ClaimLost(
                    f"someone else has written the record {claim.key}, or it was deleted"
                )
            return _claim_of(record)  # our write was made, and its answer was lost

    async def _create(self, key: str, event: Event, claimed: dict[str, Any]) -> Any:
        values = {
            "project": event.project,
            "event_id": event.id,
            "event_type": event.type,
            "attempts": 1,
            "payload_sha256": event.payload_sha256,
            "first_claimed_at": SERVER_TIMESTAMP,
            "shard": int(key, 16) % SHARDS,
            **claimed,
        }
        return await self.batches.write(creation(self._names + key, values))

    async def _take_over(self, before: Claim, claimed: dict[str, Any]) -> Claim:
        values = {"attempts": before.attempts + 1, "svix_message_id": None, **claimed}
        name = self._names + before.key
        version = await self.batches.write(update(name, values, before.version))
        attempts, age = before.attempts + 1, _moved_on(before, version).age
        return Claim(before.key, claimed["claim"], version, attempts, age)

    def _claimed(self, event: Event, token: str) -> dict[str, Any]:
        return {
            "state": State.CLAIMED.value,
            "claim": token,
            "lease": self._lease,
            "pubsub_message_id": event.source.message_id,
            **_touched(),
        }

    async def _read(self, key: str) -> Record | None:
        found, read_at = await self.batches.read(self._names + key)
        if found is None:
            return None
        return _record(values_of(found), found.update_time, time_of(read_at))

    # -- many events

    def undelivered(self) -> AsyncIterator[Record]:
        """All records that are not delivered, of any age, by the time of their last write."""
        return self._records((State.CLAIMED, State.RELEASED), None)

    def touched_since(self, since: datetime) -> AsyncIterator[Record]:
        """The records that were written at `since` or later, in the order of their last write."""
        return self._records(tuple(State), since)

    async def _records(
        self, states: tuple[State, ...], since: datetime | None
    ) -> AsyncIterator[Record]:
        # One query for all states, in the order of time. A record that is written during the
        # iteration moves to the end, so the query returns its new state.
        query = self._events.where(
            filter=FieldFilter("state", "in", [state.value for state in states])
        ).where(filter=FieldFilter("shard", "in", [*range(SHARDS)]))
        if since is not None:
            query = query.where(filter=FieldFilter("touched_at", ">=", since))
        query = query.order_by("touched_at").order_by("__name__")
        async for snapshot in pages(query, self._calls):
            version = snapshot.update_time.timestamp_pb()
            yield _record(snapshot.to_dict() or {}, version, snapshot.read_time)

    async def repair(
        self,
        record: Record,
        state: State,
        svix_message_id: str | None = None,
        *,
        fanout_confirmed: bool | None = None,
    ) -> None:
        """Write the event's true state. Raises `ClaimLost` if its record was written meanwhile."""
        known = {
            "state": state.value,
            "svix_message_id": svix_message_id,
            "fanout_confirmed": fanout_confirmed,
        }
        delivered_at = (
            (record.delivered_at or SERVER_TIMESTAMP) if state is State.DELIVERED else None
        )
        values = {"delivered_at": delivered_at, **known, **_touched()}
        async with self._calls.answering():
            with contextlib.suppress(*_CONTESTED):
                await self.batches.write(update(self._names + record.key, values, record.version))
                return
            found, _ = await self.batches.read(self._names + record.key)
            stored = values_of(found) if found else {}
            if {name: stored.get(name) for name in ("claim", *known)} != {
                "claim": record.claim,
                **known,
            }:
                raise ClaimLost(f"{record.key} has been written since it was read")

    # -- dead letters

    async def park(self, letter: DeadLetter) -> None:
        """Store a dead letter. If it is already stored, nothing changes."""
        await self._letters.park(letter)

    async def dead_letter(self, letter_id: str) -> DeadLetter | None:
        """One dead letter with its payload. Raises `LetterDamaged` if the payload is incomplete."""
        return await self._letters.read(letter_id)

    def dead_letters(
        self, prefix: str = "", *, project: str | None = None, event_id: str | None = None
    ) -> AsyncIterator[DeadLetter]:
        """The dead letters whose id begins with `prefix`, without `data` and `attributes`."""
        return self._letters.list(prefix, project, event_id)

    async def update_dead_letter(self, letter: DeadLetter) -> None:
        """Write the letter's reason and detail, unless it was discarded or deleted."""
        await self._letters.update(letter)

    async def discard_dead_letter(self, letter_id: str, why: str) -> None:
        """Erase a letter's payload, and keep the rest."""
        await self._letters.discard(letter_id, why)

    async def delete_dead_letter(self, letter_id: str) -> None:
        """Delete a letter that was replayed."""
        await self._letters.delete(letter_id)

    async def close(self) -> None:
        """Close the connections. Calls under way raise `LedgerUnavailable`."""
        await self.batches.close()
        # The client has no close of its own (https://github.com/googleapis/python-firestore).
        await self._transport.close()


def _touched() -> dict[str, Any]:
    """The fields that every write of a record sets.

    This instance's clock is exact enough for `expires_at`, because TTL deletes within a day.
    """
    expires_at = datetime.now(UTC) + RECORD_LIFETIME
    return {"touched_at": SERVER_TIMESTAMP, "expires_at": expires_at}


def _moved_on(claim: Claim, version: Any) -> Claim:
    """The claim, with a later version of its record."""
    passed = (time_of(version) - time_of(claim.version)).total_seconds()
    return Claim(claim.key, claim.token, version, claim.attempts, claim.age + passed)


def _claim_of(record: Record) -> Claim:
    """The latest claim in a record. Its age is what it was when the record was last written."""
    age = (record.touched_at - record.first_claimed_at).total_seconds()
    return Claim(record.key, record.claim, record.version, record.attempts, age)


def _record(stored: dict[str, Any], version: Any, read_at: datetime) -> Record:
    return Record(
        project=stored["project"],
        event_id=stored["event_id"],
        event_type=stored["event_type"],
        state=State(stored["state"]),
        claim=stored["claim"],
        lease=stored["lease"],
        attempts=stored["attempts"],
        payload_sha256=stored["payload_sha256"],
        first_claimed_at=stored["first_claimed_at"],
        touched_at=stored["touched_at"],
        read_at=read_at,
        version=version,
        delivered_at=stored.get("delivered_at"),
        svix_message_id=stored.get("svix_message_id"),
        fanout_confirmed=stored.get("fanout_confirmed"),
        pubsub_message_id=stored.get("pubsub_message_id"),
    )
