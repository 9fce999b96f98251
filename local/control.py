"""A client of the simulator's own API, for tests and tools in other processes."""

from typing import Any

import httpx


class Control:
    """A client of the control API, for other processes. Raises httpx's errors."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=f"{url}/control", timeout=30)

    def messages(self, app: str | None = None) -> list[dict[str, Any]]:
        """What is held."""
        held: list[dict[str, Any]] = self._ask(
            "GET", "messages", params={"app": app} if app else {}
        )
        return held

    def summary(self) -> dict[str, Any]:
        """Counts: messages, events, doubles, and calls by status."""
        counts: dict[str, Any] = self._ask("GET", "summary")
        return counts

    def calls(self) -> list[dict[str, Any]]:
        """Every call."""
        made: list[dict[str, Any]] = self._ask("GET", "calls")
        return made

    def conduct(self, **changes: Any) -> None:
        """Change how it behaves; `clock_offset` in seconds."""
        self._ask("PUT", "conduct", json=changes)

    def inject(self, kind: str, **details: Any) -> None:
        """Let something go wrong, as `Fault` says."""
        self._ask("POST", "faults", json={"kind": kind, **details})

    def clear_faults(self) -> None:
        """Let nothing go wrong any more."""
        self._ask("DELETE", "faults")

    def refuse(self, seconds: float) -> None:
        """Refuse connections for so long."""
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

    def _ask(self, method: str, path: str, **more: Any) -> Any:
        answer = self._client.request(method, f"/{path}", **more)
        answer.raise_for_status()
        return answer.json()
