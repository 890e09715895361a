"""Which server is meant, and with which key. Pure but for the reading of the admin key's file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DEFAULT_URL = "http://127.0.0.1:8000/v1"
ADMIN_KEY = "admin-key"
API_URL = "api-url"
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
    company's secret is not sent to this server by accident. The admin key of a home goes to the API of that home only,
    or where a flag says: what listens on the usual port, or where a variable points, may be another one.
    """
    if home is not None:
        return Connection(base_url or f"{_read(home / API_URL)}/v1", _read(home / ADMIN_KEY))
    url = base_url or env.get("LUTHIER_BASE_URL") or None
    if key := env.get("LUTHIER_API_KEY"):
        return Connection(url or env.get("OPENAI_BASE_URL") or DEFAULT_URL, key)
    key = env.get("OPENAI_API_KEY", "")
    if key.startswith(OUR_KEYS):
        return Connection(url or env.get("OPENAI_BASE_URL") or DEFAULT_URL, key)
    if key and url is None and (url := env.get("OPENAI_BASE_URL")):
        return Connection(url, key)
    raise UsageError("no API key: set LUTHIER_API_KEY, or name Luthier's directory with --home")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError as error:
        advice = "; is Luthier running there? Otherwise say --base-url" if path.name == API_URL else ""
        raise UsageError(f"there is no file {path}{advice}") from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
