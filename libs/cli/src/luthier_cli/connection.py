"""Which server is meant, and with which key. Pure but for the reading of the admin key's file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DEFAULT_URL = "http://127.0.0.1:8000/v1"
ADMIN_KEY = "admin-key"
OUR_KEYS = "sk-lut-"


class UsageError(Exception):
    """What was asked cannot be sent; the text says what to change."""


@dataclass(frozen=True)
class Connection:
    """An API and the key for it. The key is not shown."""

    base_url: str
    key: str

    def __repr__(self) -> str:
        return f"Connection({self.base_url})"


def find_connection(env: Mapping[str, str], *, base_url: str | None = None, home: Path | None = None) -> Connection:
    """Flags before LUTHIER_*, LUTHIER_* before OPENAI_*.

    A key of OPENAI_API_KEY goes only to the server of OPENAI_BASE_URL, unless it is a key of Luthier: another
    company's secret is not sent to this server by accident.
    """
    url = base_url or env.get("LUTHIER_BASE_URL") or None
    if home is not None:
        return Connection(url or DEFAULT_URL, _admin_key(home))
    if key := env.get("LUTHIER_API_KEY"):
        return Connection(url or env.get("OPENAI_BASE_URL") or DEFAULT_URL, key)
    key = env.get("OPENAI_API_KEY", "")
    if key.startswith(OUR_KEYS):
        return Connection(url or env.get("OPENAI_BASE_URL") or DEFAULT_URL, key)
    if key and url is None and (url := env.get("OPENAI_BASE_URL")):
        return Connection(url, key)
    raise UsageError("no API key: set LUTHIER_API_KEY, or name Luthier's directory with --home")


def _admin_key(home: Path) -> str:
    try:
        return (home / ADMIN_KEY).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UsageError(f"cannot read {home / ADMIN_KEY}: {error.strerror}") from error
