"""The relay with a lease of two seconds, for the page's short stories."""

from functools import partial
from typing import Any

from relay import worker

_opener: Any = worker.ledger_opener
_parts: Any = worker
_parts.ledger_opener = lambda *settings, **more: partial(_opener(*settings, **more), lease=2.0)

from main import notifications  # noqa: E402 - after the opener is replaced

__all__ = ["notifications"]
