"""The function most people would write, for comparison: synchronous, with the SDKs' defaults.

A Firestore transaction checks whether the event was seen and marks it. `svix.message.create` sends
it, and an update records that. Svix's 429 and 5xx are passed on, so that Pub/Sub retries. The
function takes wrapped pushes only. Settings: SVIX_TOKEN, SVIX_SERVER_URL, and Google's own.

If NAIVE_LEDGER names a file, the transaction is one of SQLite instead, for the page of `make run`,
which needs no cloud. The file may be `:memory:`, for benches in which the ledger makes no
difference.
"""

import base64
import json
import os
import sqlite3
from http import HTTPStatus

import functions_framework
from flask import Request
from google.cloud import firestore
from svix.api import ApplicationIn, MessageIn, Svix, SvixOptions
from svix.exceptions import HttpError

svix = Svix(os.environ["SVIX_TOKEN"], SvixOptions(server_url=os.environ.get("SVIX_SERVER_URL")))


class FirestoreLedger:
    """One document for each event."""

    def __init__(self) -> None:
        self._database = firestore.Client()

    def is_seen(self, event_id: str) -> bool:
        """Whether the event was seen; if not, it is marked as being processed."""
        seen: bool = _mark(self._database.transaction(), self._document(event_id))
        return seen

    def record(self, event_id: str) -> None:
        """Record that the event was sent."""
        sent = {"state": "processed", "processed_at": firestore.SERVER_TIMESTAMP}
        self._document(event_id).update(sent)

    def forget(self, event_id: str) -> None:
        """Remove the mark, because the event was not sent."""
        self._document(event_id).delete()

    def _document(self, event_id: str) -> firestore.DocumentReference:
        return self._database.collection("naive").document(event_id)


@firestore.transactional
def _mark(transaction: firestore.Transaction, document: firestore.DocumentReference) -> bool:
    if document.get(transaction=transaction).exists:
        return True
    transaction.set(document, {"state": "processing", "seen_at": firestore.SERVER_TIMESTAMP})
    return False


class FileLedger:
    """One row for each event. Each call is a transaction by itself."""

    def __init__(self, path: str) -> None:
        # SQLite's own lock lets the threads of the server share the connection.
        self._database = sqlite3.connect(
            path, timeout=30, isolation_level=None, check_same_thread=False
        )
        self._database.execute("pragma journal_mode = wal")
        self._database.execute(
            "create table if not exists naive (event_id text primary key, state text not null)"
        )

    def is_seen(self, event_id: str) -> bool:
        """Whether the event was seen; if not, it is marked as being processed."""
        mark = "insert into naive values (?, 'processing') on conflict do nothing"
        return self._database.execute(mark, (event_id,)).rowcount == 0

    def record(self, event_id: str) -> None:
        """Record that the event was sent."""
        sent = "update naive set state = 'processed' where event_id = ?"
        self._database.execute(sent, (event_id,))

    def forget(self, event_id: str) -> None:
        """Remove the mark, because the event was not sent."""
        self._database.execute("delete from naive where event_id = ?", (event_id,))


path = os.environ.get("NAIVE_LEDGER")
ledger: FirestoreLedger | FileLedger = FirestoreLedger() if path is None else FileLedger(path)


@functions_framework.http
def notifications(request: Request) -> tuple[str, int]:
    """Handle one push."""
    event = json.loads(base64.b64decode(request.get_json()["message"]["data"]))
    if ledger.is_seen(event["id"]):
        return "duplicate", 200
    try:
        svix.message.create(
            event["project"],
            MessageIn(
                event_type=event["type"],
                event_id=event["id"],
                payload=event,
                application=ApplicationIn(name=event["project"], uid=event["project"]),
            ),
        )
    except HttpError as error:
        ledger.forget(event["id"])
        return error.code, 429 if error.status_code == HTTPStatus.TOO_MANY_REQUESTS else 500
    ledger.record(event["id"])
    return "delivered", 200
