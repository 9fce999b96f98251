"""The function most people would write, for comparison: synchronous, the SDKs as they come.

A Firestore transaction looks whether the event was seen and marks it, `svix.message.create` sends
it, an update records that it was, and Svix's 429 and 5xx are passed on for Pub/Sub to retry. Takes
wrapped pushes alone. Settings: SVIX_TOKEN, SVIX_SERVER_URL, and Google's own. With NAIVE_LEDGER
set to `memory` it remembers in a dictionary: for measuring what a rate limit does to it, where
the ledger makes no difference.
"""

import base64
import json
import os
from http import HTTPStatus

import functions_framework
from flask import Request
from google.cloud import firestore
from svix.api import ApplicationIn, MessageIn, Svix, SvixOptions
from svix.exceptions import HttpError

svix = Svix(os.environ["SVIX_TOKEN"], SvixOptions(server_url=os.environ.get("SVIX_SERVER_URL")))
seen: set[str] = set()
in_memory = os.environ.get("NAIVE_LEDGER") == "memory"
database = None if in_memory else firestore.Client()


@firestore.transactional
def is_seen(transaction: firestore.Transaction, event_id: str) -> bool:
    """Whether the event was seen; if not, it is marked as being processed."""
    assert database is not None  # noqa: S101 - it is only called with one
    document = database.collection("naive").document(event_id)
    if document.get(transaction=transaction).exists:
        return True
    transaction.set(document, {"state": "processing", "seen_at": firestore.SERVER_TIMESTAMP})
    return False


def record(event_id: str) -> None:
    """It was sent."""
    if database is not None:
        sent = {"state": "processed", "processed_at": firestore.SERVER_TIMESTAMP}
        database.collection("naive").document(event_id).update(sent)


def forget(event_id: str) -> None:
    """It was not sent after all."""
    if database is None:
        seen.discard(event_id)
    else:
        database.collection("naive").document(event_id).delete()


@functions_framework.http
def notifications(request: Request) -> tuple[str, int]:
    """One push."""
    event = json.loads(base64.b64decode(request.get_json()["message"]["data"]))
    if database is None:
        duplicate = event["id"] in seen
        seen.add(event["id"])
    else:
        duplicate = is_seen(database.transaction(), event["id"])
    if duplicate:
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
        forget(event["id"])
        return error.code, 429 if error.status_code == HTTPStatus.TOO_MANY_REQUESTS else 500
    record(event["id"])
    return "delivered", 200
