"""A client of the simulator's own API, for tests and tools in other processes."""

from datetime import timedelta
from typing import Any

from pyreqwest.client import SyncClientBuilder

_LIMIT = timedelta(seconds=30)


class Control:
    """A client of the control API, for other processes. Raises pyreqwest's errors."""

    def __init__(self, url: str) -> None:
        builder = SyncClientBuilder().base_url(f"{url}/control/").no_proxy().timeout(_LIMIT)
        self._client = builder.error_for_status().build()

    def messages(self, app: str | None = None) -> list[dict[str, Any]]:
        """The messages that the simulator holds; with `app`, only that application's."""
        held: list[dict[str, Any]] = self._ask(
            "GET", "messages", params={"app": app} if app else {}
        )
        return held

    def summary(self) -> dict[str, Any]:
        """How many messages, events, and calls by status there are; and the events stored twice."""
        counts: dict[str, Any] = self._ask("GET", "summary")
        return counts

    def calls(self) -> list[dict[str, Any]]:
        """Every call to the API."""
        made: list[dict[str, Any]] = self._ask("GET", "calls")
        return made

    def set_behaviour(self, **changes: Any) -> None:
        """Change fields of the simulator's `Behaviour`. `clock_offset` is in seconds."""
        self._ask("PUT", "behaviour", json=changes)

    def inject(self, kind: str, **details: Any) -> None:
        """Add a `Fault` with these fields."""
        self._ask("POST", "faults", json={"kind": kind, **details})

    def clear_faults(self) -> None:
        """Remove all faults."""
        self._ask("DELETE", "faults")

    def refuse(self, seconds: float) -> None:
        """Refuse connections for this many seconds."""
        self._ask("POST", "refuse", json={"seconds": seconds})

    def restart(self) -> None:
        """Lose the idempotency keys, as a restart of Svix does."""
        self._ask("POST", "restart")

    def reset(self) -> None:
        """Forget everything."""
        self._ask("POST", "reset")

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _ask(
        self, method: str, path: str, json: Any = None, params: dict[str, str] | None = None
    ) -> Any:
        request = self._client.request(method, path).query(params or {})
        if json is not None:
            request = request.body_json(json)
        return request.build().send().json()
