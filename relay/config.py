"""The settings: read once from the environment, then frozen. One message reports all faults.

Google's libraries read further variables by themselves, such as `FIRESTORE_EMULATOR_HOST`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

CLAIM_SECONDS = 5.0
"""The maximum time in which the ledger answers a claim, including its retries."""

SVIX_CALL_SECONDS = 10.0
"""The maximum time of a call to Svix, from connecting to the last byte."""

SETTLE_SECONDS = 5.0
"""The maximum time in which the ledger records Svix's answer, including its retries."""

ATTEMPT_SECONDS = CLAIM_SECONDS + SVIX_CALL_SECONDS + SETTLE_SECONDS
"""The maximum time of an attempt: a claim, a call to Svix and a settle. A request gets its last
turn this long before its budget ends. Other steps may take until the budget ends: further tries to
record or park the event, polls of another delivery's record, and the wait before a nack."""

_BUDGET = 240.0  # seconds
_BUDGET_BOUNDS = (30.0, 540.0)
# Below 30 s, an attempt (20 s) leaves hardly any time to wait. Above 540 s, the ack deadline (the
# budget plus 60 s) would exceed Pub/Sub's maximum of 600 s.

_BODIES_MIB = 48
_BODIES_BOUNDS = (32.0, 32_768.0)
# 32 MiB hold two wrapped pushes of Pub/Sub's largest message, 14 MB each, and some smaller bodies.

_EVENT_TAGS = "data.id"
_MOST_TAGS = 5  # Svix's maximum for a message: https://api.svix.com/docs

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class ConfigurationError(Exception):
    """Environment variables are missing or wrong. The message names every fault."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__(
            "the relay cannot start:\n" + "\n".join(f"  - {fault}" for fault in faults)
        )


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings. Times are in seconds.

    This order always holds: attempt < budget < function timeout < ack deadline.
    """

    svix_token: str = field(repr=False)
    svix_server_url: str | None = None
    """None: the SDK uses the URL of the token's region."""
    ledger_path: Path | None = None
    """The file of the SQLite ledger; None: Firestore."""
    google_cloud_project: str | None = None
    """None: Google's credentials decide."""
    firestore_database: str = "(default)"
    create_applications: bool = True
    request_budget: float = _BUDGET
    """The maximum time of a request, from its arrival to its answer. Only the last call to the
    ledger may end later, by at most 20 s."""
    bodies_mib: int = _BODIES_MIB
    """The maximum total size of the large bodies in memory, in MiB."""
    event_tags: tuple[str, ...] = (_EVENT_TAGS,)
    """Paths into the event. Their values become the Svix message's tags."""
    log_level: str = "INFO"

    @property
    def function_timeout(self) -> float:
        """When Cloud Run ends a request. By then the relay has answered."""
        return self.request_budget + 30

    @property
    def ack_deadline(self) -> float:
        """How long Pub/Sub waits for an answer. By then Cloud Run has ended the request."""
        return self.request_budget + 60

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Read the settings. An empty variable counts as unset. Raises `ConfigurationError`."""
        values = {name: value for name, value in environment.items() if value.strip()}
        faults: list[str] = []
        settings = cls(
            svix_token=_token(values, faults),
            svix_server_url=_url(values, faults),
            ledger_path=_ledger(values, faults),
            google_cloud_project=values.get("GOOGLE_CLOUD_PROJECT"),
            firestore_database=values.get("FIRESTORE_DATABASE", "(default)"),
            create_applications=_flag(values, "CREATE_APPLICATIONS", faults, default=True),
            request_budget=_number(
                values, "REQUEST_BUDGET_SECONDS", _BUDGET, _BUDGET_BOUNDS, faults
            ),
            bodies_mib=int(_number(values, "BODIES_MIB", _BODIES_MIB, _BODIES_BOUNDS, faults)),
            event_tags=_tags(values, faults),
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
        faults.append("SVIX_TOKEN has a character that no token has: copy the token again")
    return token


def _url(values: Mapping[str, str], faults: list[str]) -> str | None:
    url = values.get("SVIX_SERVER_URL")
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        is_usable = (
            parts.scheme in {"http", "https"}
            and bool(parts.hostname)
            and parts.port != 0
            and not (parts.query or parts.fragment or parts.username)
        )
    except ValueError:  # unbalanced brackets, or a port above 65535
        is_usable = False
    if not is_usable:
        faults.append("SVIX_SERVER_URL is not an http or https URL such as https://api.eu.svix.com")
    return url


def _ledger(values: Mapping[str, str], faults: list[str]) -> Path | None:
    ledger = values.get("LEDGER", "firestore")
    if ledger == "firestore":
        return None
    kind, _, path = ledger.partition(":")
    if kind != "sqlite" or not path:
        faults.append(f"LEDGER is {ledger!r}: it must be `firestore` or `sqlite:PATH`")
        return None
    if not Path(path).absolute().parent.is_dir():
        faults.append(f"LEDGER names a file in {Path(path).parent}, which is not a directory")
    return Path(path)


def _flag(values: Mapping[str, str], name: str, faults: list[str], *, default: bool) -> bool:
    text = values.get(name, str(default)).strip().lower()
    if text not in {"true", "false"}:
        faults.append(f"{name} is {text!r}: it must be `true` or `false`")
    return text == "true"


def _number(
    values: Mapping[str, str],
    name: str,
    default: float,
    bounds: tuple[float, float],
    faults: list[str],
) -> float:
    low, high = bounds
    text = values.get(name, f"{default:g}")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not low <= number <= high:
        faults.append(f"{name} is {text!r}: it must be a number from {low:g} to {high:g}")
        return default
    return number


def _tags(values: Mapping[str, str], faults: list[str]) -> tuple[str, ...]:
    text = values.get("EVENT_TAGS", _EVENT_TAGS)
    paths = tuple(path.strip() for path in text.split(","))
    if len(paths) > _MOST_TAGS or not all(name for path in paths for name in path.split(".")):
        faults.append(
            f"EVENT_TAGS is {text!r}: it must be at most {_MOST_TAGS} paths into the event, "
            "separated by commas, such as `data.id`"
        )
    return paths


def _log_level(values: Mapping[str, str], faults: list[str]) -> str:
    level = values.get("LOG_LEVEL", "INFO").strip().upper()
    if level not in LOG_LEVELS:
        faults.append(f"LOG_LEVEL is {level!r}: it must be one of {', '.join(LOG_LEVELS)}")
    return level
