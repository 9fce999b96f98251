"""Settings: read once from the environment, every fault reported at once, frozen after.

Google's own variables (`GOOGLE_CLOUD_PROJECT`, `FIRESTORE_EMULATOR_HOST`) are read by Google's
libraries as well; here they are only named where the relay needs them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

SVIX_CALL_SECONDS = 10.0
"""The longest one call to Svix may take, from connecting to the last byte."""

SETTLE_SECONDS = 5.0
"""The longest the ledger may take to record what Svix said."""

_BUDGET_BOUNDS = (25.0, 540.0)
# Below 25 s a call and a settle (15 s) leave no room to wait; above 540 s the ack deadline (the
# budget and 60 s) passes the 600 s that Pub/Sub allows.

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class ConfigurationError(Exception):
    """The environment is missing something or holds something wrong; its text names every fault."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__(
            "the relay cannot start:\n" + "\n".join(f"  - {fault}" for fault in faults)
        )


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment decides. Times are seconds.

    Everything that takes time is derived from the request budget, so that the order always holds:
    Svix call < budget < function time-out < lease < ack deadline.
    """

    svix_token: str = field(repr=False)
    svix_server_url: str | None = None
    """None: by the token's region, as the SDK does."""
    ledger_path: Path | None = None
    """The embedded ledger's file; None: Firestore."""
    google_cloud_project: str | None = None
    """None: as Google's credentials say."""
    firestore_database: str = "(default)"
    create_applications: bool = True
    request_budget: float = 60.0
    log_level: str = "INFO"

    @property
    def function_timeout(self) -> float:
        """When Cloud Run ends the request: after the relay has answered."""
        return self.request_budget + 15

    @property
    def lease(self) -> float:
        """How long a claim holds: no request that made it can still be running after."""
        return self.request_budget + 30

    @property
    def ack_deadline(self) -> float:
        """When Pub/Sub gives a push up: after the lease, so that its redelivery can claim."""
        return self.request_budget + 60

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Read the settings. Raises `ConfigurationError`; an empty variable counts as unset."""
        values = {name: value for name, value in environment.items() if value.strip()}
        faults: list[str] = []
        settings = cls(
            svix_token=_token(values, faults),
            svix_server_url=_url(values, faults),
            ledger_path=_ledger(values, faults),
            google_cloud_project=values.get("GOOGLE_CLOUD_PROJECT"),
            firestore_database=values.get("FIRESTORE_DATABASE", "(default)"),
            create_applications=_flag(values, "CREATE_APPLICATIONS", faults, default=True),
            request_budget=_budget(values, faults),
            log_level=_log_level(values, faults),
        )
        if faults:
            raise ConfigurationError(faults)
        return settings


def _token(values: Mapping[str, str], faults: list[str]) -> str:
    token = values.get("SVIX_TOKEN", "").strip()
    if not token:
        faults.append("SVIX_TOKEN is missing: set it to an API token of the Svix environment")
    elif not (token.isascii() and token.isprintable()) or " " in token:
        faults.append("SVIX_TOKEN holds a character that no token has: was it copied whole?")
    return token


def _url(values: Mapping[str, str], faults: list[str]) -> str | None:
    url = values.get("SVIX_SERVER_URL")
    if url is None:
        return None
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        faults.append("SVIX_SERVER_URL is not an http or https URL such as https://api.eu.svix.com")
    return url


def _ledger(values: Mapping[str, str], faults: list[str]) -> Path | None:
    ledger = values.get("LEDGER", "firestore")
    if ledger == "firestore":
        return None
    kind, _, path = ledger.partition(":")
    if kind != "sqlite" or not path:
        faults.append(f"LEDGER is {ledger!r}: it is `firestore` or `sqlite:PATH`")
        return None
    if not Path(path).absolute().parent.is_dir():
        faults.append(f"LEDGER names a file in {Path(path).parent}, which is no directory")
    return Path(path)


def _flag(values: Mapping[str, str], name: str, faults: list[str], *, default: bool) -> bool:
    text = values.get(name, str(default)).strip().lower()
    if text not in {"true", "false"}:
        faults.append(f"{name} is {text!r}: it is `true` or `false`")
    return text == "true"


def _budget(values: Mapping[str, str], faults: list[str]) -> float:
    text = values.get("REQUEST_BUDGET_SECONDS", "60")
    low, high = _BUDGET_BOUNDS
    try:
        budget = float(text)
    except ValueError:
        budget = float("nan")
    if not low <= budget <= high:
        faults.append(
            f"REQUEST_BUDGET_SECONDS is {text!r}: it is a number from {low:g} to {high:g}"
        )
    return budget


def _log_level(values: Mapping[str, str], faults: list[str]) -> str:
    level = values.get("LOG_LEVEL", "INFO").strip().upper()
    if level not in LOG_LEVELS:
        faults.append(f"LOG_LEVEL is {level!r}: it is one of {', '.join(LOG_LEVELS)}")
    return level
