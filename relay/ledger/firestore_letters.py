"""Dead letters in Firestore: one document each in `dead_letters`.

A compressed payload that is too large for that document is stored in parts, in
`dead_letter_parts`. The parts are written first, one by one. The letter is written last, with the
number of parts and their hash. Only then is the message parked. When a letter is deleted or
discarded, its parts are deleted last. So a crash can leave parts without a letter, which expire,
but never a letter without its parts.

The library's document classes are slow, but will do here: a delivery uses this module only to park.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any

from google.api_core.exceptions import AlreadyExists, FailedPrecondition, NotFound
from google.cloud.firestore import (
    DELETE_FIELD,
    SERVER_TIMESTAMP,
    AsyncClient,
    AsyncQuery,
    DocumentSnapshot,
    FieldFilter,
)

from relay.envelope import Form
from relay.ledger import (
    DEAD_LETTER_LIFETIME,
    PARK_SECONDS,
    DeadLetter,
    LetterDamaged,
)
from relay.ledger.content import pack, unpack
from relay.ledger.firestore_calls import Calls, pages

PART_BYTES = 900_000
"""The largest part. A document holds 1 MiB (https://cloud.google.com/firestore/quotas), so 148 kB
are left for the names and the detail."""

_PARTS_OUTLIVE = timedelta(days=2)
"""How much later than their letter the parts expire. TTL deletes within a day after `expires_at`,
and the letter must be deleted before its parts."""

_CARRIED = {"data", "attributes"}
_FIELDS = [field.name for field in fields(DeadLetter) if field.name not in {"id", *_CARRIED}]


class Letters:
    """The dead letters of one database."""

    def __init__(self, client: AsyncClient, calls: Calls) -> None:
        self._client = client
        self._calls = calls
        self._letters = client.collection("dead_letters")
        self._parts = client.collection("dead_letter_parts")

    async def park(self, letter: DeadLetter) -> None:
        """Store a letter. If it is already stored, nothing changes."""
        content = await asyncio.to_thread(pack, letter)
        stored = {name: getattr(letter, name) for name in _FIELDS} | {
            "parked_at": SERVER_TIMESTAMP,
            "expires_at": datetime.now(UTC) + DEAD_LETTER_LIFETIME,
        }
        in_parts = len(content) > PART_BYTES
        async with self._calls.answering(PARK_SECONDS):
            if not in_parts:
                stored["content"] = content
            elif (await self._get(letter.id)).exists:
                return
            else:
                stored |= await self._store_parts(letter.id, content)
            if await self._create(letter.id, stored) or not in_parts:
                return
            there = await self._get(letter.id)
            if there.exists and there.get("discarded") is not None:
                # Meanwhile another delivery parked the letter, and an operator discarded it. The
                # erased bytes must not come back.
                await self._delete_parts(letter.id)

    async def read(self, letter_id: str) -> DeadLetter | None:
        """One letter with its payload. Raises `LetterDamaged` if the payload is incomplete."""
        async with self._calls.answering(PARK_SECONDS):
            snapshot = await self._get(letter_id)
            while snapshot.exists:
                try:
                    return await self._whole(snapshot)
                except LetterDamaged:
                    before, snapshot = snapshot, await self._get(letter_id)
                    if snapshot.update_time == before.update_time:
                        raise
                    # The letter was discarded or deleted while its parts were read.
            return None

    def list(
        self, prefix: str, project: str | None, event_id: str | None
    ) -> AsyncIterator[DeadLetter]:
        """The letters whose id begins with `prefix`, by id, without `data` and `attributes`."""
        query = self._letters.select(_FIELDS)
        for name, value in (("project", project), ("event_id", event_id)):
            if value is not None:
                query = query.where(filter=FieldFilter(name, "==", value))
        return self._listed(self._with_prefix(query, self._letters, prefix))

    async def _listed(self, query: AsyncQuery) -> AsyncIterator[DeadLetter]:
        async for snapshot in pages(query, self._calls):
            yield _letter(snapshot.id, snapshot.to_dict() or {}, "{}", b"")

    async def update(self, letter: DeadLetter) -> None:
        """Write the letter's reason and detail, unless it was discarded or deleted."""
        why = {
            name: getattr(letter, name) for name in ("reason", "detail", "svix_status", "svix_code")
        }
        await self._change(letter.id, why)

    async def discard(self, letter_id: str, why: str) -> None:
        """Erase a letter's payload, and keep the rest."""
        erased = {"content": DELETE_FIELD, "parts": DELETE_FIELD, "content_sha256": DELETE_FIELD}
        discarded = {"discarded": why, "discarded_at": SERVER_TIMESTAMP}
        await self._change(letter_id, discarded | erased)
        await self._delete_parts(letter_id)

    async def delete(self, letter_id: str) -> None:
        """Delete a letter, unless it was discarded, and delete its parts."""
        await self._change(letter_id, None)
        await self._delete_parts(letter_id)

    async def _create(self, letter_id: str, stored: dict[str, Any]) -> bool:
        """Store a letter. False if it is already stored."""
        async with self._calls.answering():
            try:
                await self._letters.document(letter_id).create(stored)
            except AlreadyExists:
                return False
            return True

    async def _change(self, letter_id: str, changes: dict[str, Any] | None) -> None:
        """Update a letter, or delete it if `changes` is None, unless it is discarded or deleted."""
        document = self._letters.document(letter_id)
        async with self._calls.answering():
            while True:
                snapshot = await document.get()
                if not snapshot.exists or snapshot.get("discarded") is not None:
                    return
                unchanged = self._client.write_option(last_update_time=snapshot.update_time)
                try:
                    if changes is None:
                        await document.delete(option=unchanged)
                    else:
                        await document.update(changes, option=unchanged)
                except (FailedPrecondition, NotFound):
                    continue  # another wrote it meanwhile, or we did and the answer was lost
                return

    # -- parts

    async def _store_parts(self, letter_id: str, content: bytes) -> dict[str, Any]:
        """Write the parts. Returns the letter's fields about them."""
        digest = hashlib.sha256(content).hexdigest()
        expires_at = datetime.now(UTC) + DEAD_LETTER_LIFETIME + _PARTS_OUTLIVE
        offsets = range(0, len(content), PART_BYTES)
        for number, offset in enumerate(offsets, 1):
            part = {"content": content[offset : offset + PART_BYTES], "expires_at": expires_at}
            async with self._calls.answering():
                await self._parts.document(_part_id(letter_id, digest, number)).set(part)
        return {"parts": len(offsets), "content_sha256": digest}

    async def _whole(self, snapshot: DocumentSnapshot[Any]) -> DeadLetter:
        stored = snapshot.to_dict() or {}
        if stored.get("discarded") is not None:
            return _letter(snapshot.id, stored, "{}", b"")
        content = stored.get("content")
        if content is None:
            content = await self._read_parts(snapshot.id, stored["parts"], stored["content_sha256"])
        attributes, data = await asyncio.to_thread(unpack, snapshot.id, content)
        return _letter(snapshot.id, stored, attributes, data)

    async def _read_parts(self, letter_id: str, count: int, digest: str) -> bytes:
        content = bytearray()
        for number in range(1, count + 1):
            document = self._parts.document(_part_id(letter_id, digest, number))
            async with self._calls.answering():
                part = await document.get()
            if not part.exists:
                raise LetterDamaged(f"part {number} of {count} is missing: {document.path}")
            content += part.get("content")
        if hashlib.sha256(content).hexdigest() != digest:
            raise LetterDamaged(
                f"the payload's {count} parts are not what was stored: their hash should be "
                f"{digest} (dead letter {letter_id})"
            )
        return bytes(content)

    async def _delete_parts(self, letter_id: str) -> None:
        """Delete all parts with this letter's id, also those of an interrupted call."""
        query = self._with_prefix(self._parts.select([]), self._parts, letter_id)
        async for snapshot in pages(query, self._calls):
            async with self._calls.answering():
                await snapshot.reference.delete()

    async def _get(self, letter_id: str) -> DocumentSnapshot[Any]:
        async with self._calls.answering():
            return await self._letters.document(letter_id).get()

    @staticmethod
    def _with_prefix(query: AsyncQuery, collection: Any, prefix: str) -> AsyncQuery:
        """The query for the document ids that begin with `prefix`, in their order."""
        query = query.order_by("__name__")
        if not prefix:
            return query
        begin, end = collection.document(prefix), collection.document(f"{prefix}g")
        return query.start_at({"__name__": begin}).end_before({"__name__": end})


def _part_id(letter_id: str, digest: str, number: int) -> str:
    """The id of a part. The hash keeps two different payloads of one message apart."""
    return f"{letter_id}-{digest[:16]}-{number}"


def _letter(letter_id: str, stored: dict[str, Any], attributes: str, data: bytes) -> DeadLetter:
    """Build a letter. Unknown fields are ignored, because another version may have added them."""
    known = {name: stored[name] for name in _FIELDS if name in stored}
    known["form"] = Form(known["form"])
    return DeadLetter(id=letter_id, data=data, attributes=attributes, **known)
