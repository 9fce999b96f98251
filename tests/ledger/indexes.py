"""Which queries Firestore can answer with the indexes that `deploy.sh` makes.

The emulator answers any query; Firestore itself refuses one that no index serves
(https://cloud.google.com/firestore/docs/query-data/index-overview).
"""

from math import prod
from pathlib import Path
from typing import Any

from google.cloud.firestore_v1.types import StructuredQuery

DECLARED = Path(__file__).parents[2] / "deploy" / "firestore-indexes.txt"

MOST_DISJUNCTIONS = 30
"""The most disjunctions of one query (https://cloud.google.com/firestore/docs/query-data/queries).
Those of several fields are multiplied."""

_EQUALITIES = {StructuredQuery.FieldFilter.Operator.EQUAL, StructuredQuery.FieldFilter.Operator.IN}


def declared(kind: str, collection: str) -> list[list[str]]:
    """The fields of each index of this kind."""
    lines = (line.partition("#")[0].split() for line in DECLARED.read_text().splitlines())
    return [
        fields for group, its, *fields in filter(None, lines) if (group, its) == (collection, kind)
    ]


def why_unserved(query: StructuredQuery) -> str | None:
    """Why Firestore can't answer the query; None if it can."""
    (source,) = query.from_
    equal: dict[str, int] = {}
    ordered: list[str] = []
    for asked in _filters(query.where):
        if asked.op in _EQUALITIES:
            equal[asked.field.field_path] = len(asked.value.array_value.values) or 1
        else:
            ordered.append(asked.field.field_path)
    for order in query.order_by:
        if order.direction == StructuredQuery.Direction.DESCENDING:
            return f"{order.field.field_path} is indexed in ascending order"
        if order.field.field_path not in ordered:
            ordered.append(order.field.field_path)
    if prod(equal.values()) > MOST_DISJUNCTIONS:
        return f"more than {MOST_DISJUNCTIONS} disjunctions"
    # Every index ends with the document's name.
    ordered = [field for field in ordered if field != "__name__"]
    collection = source.collection_id
    if not ordered:
        # Firestore merges indexes of single fields.
        missing = [field for field in equal if [field] not in declared("indexed", collection)]
        return f"no index on {missing} of {collection}" if missing else None
    for fields in declared("composite", collection) + declared("indexed", collection):
        if set(fields[: len(equal)]) == set(equal) and fields[len(equal) :] == ordered:
            return None
    return f"no index on {[*equal, *ordered]} of {collection}"


def _filters(where: Any) -> list[Any]:
    if "composite_filter" in where:
        return [leaf for part in where.composite_filter.filters for leaf in _filters(part)]
    return [where.field_filter] if "field_filter" in where else []
