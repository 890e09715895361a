"""Who asks, what they may do, and what a name may be. Pure."""

import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from luthier_api.errors import bad_cursor
from luthier_common.contract.ids import canonical_id, spelled_with

MAX_FILENAME_BYTES = 255
MAX_ENDING = 16
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_SUFFIX = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Scope(StrEnum):
    """What a key may do. `admin` holds all."""

    FILES_READ = "files:read"
    FILES_WRITE = "files:write"
    JOBS_READ = "fine-tuning:read"
    JOBS_WRITE = "fine-tuning:write"
    MODELS_READ = "models:read"
    MODELS_WRITE = "models:write"
    INFERENCE = "inference"
    ON_BEHALF_OF = "on-behalf-of"
    WEBHOOKS = "webhooks:*"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Principal:
    """A key that was checked: whose wall it stands behind, and what it may do."""

    key_id: str
    org: str
    org_name: str
    project: str
    owner: str
    scopes: frozenset[str]
    end_user: str | None = None
    """On whose behalf the key acts; then things of other end users are not there for it."""
    is_strict: bool = False
    """Whether the key was made for a client that parses strictly."""

    rate_limit: int | None = None
    """Requests a minute; None: as many as the installation allows."""

    def may(self, scope: str) -> bool:
        return scope in self.scopes or Scope.ADMIN in self.scopes


DialectName = Literal["openai", "mka1"]
BYTES = "application/octet-stream"
KNOWN_TYPES = {"jsonl": "application/jsonl", "json": "application/json", "csv": "text/csv"}
Order = Literal["asc", "desc", "ascending", "descending"]
ASCENDING = ("asc", "ascending")


@dataclass(frozen=True, slots=True)
class View:
    """How this request's client wants to see things: its dialect's spelling of ids, and whether it knows `paused`."""

    dialect: DialectName = "openai"
    is_strict: bool = False

    def id(self, thing_id: str) -> str:
        """The id as the dialect spells it: the same core behind `ftjob-` or `ftjob_`."""
        return spelled_with("_", thing_id) if self.dialect == "mka1" else thing_id

    def media_type(self, filename: str) -> str:
        """The type that a file's bytes are sent as. MKA1's library takes only types that it knows; none of these is
        one that a browser would run.
        """
        if self.dialect == "openai":
            return BYTES
        return KNOWN_TYPES.get(filename.lower().rpartition(".")[2], "text/plain")

    def status(self, status: str) -> str:
        """A client that parses strictly has no word for `paused`; `queued` holds no slots and has not ended either."""
        return "queued" if self.is_strict and status == "paused" else status

    def statuses(self, shown: str) -> tuple[str, ...]:
        """The statuses of the things that this client sees in the one that it names."""
        return ("queued", "paused") if self.is_strict and shown == "queued" else (shown,)


@dataclass(frozen=True, slots=True)
class Page:
    """A slice of a list, newest first unless `ascending`; `after` is the id of the last item seen."""

    limit: int
    after: str | None = None
    ascending: bool = False

    def after_a(self, prefix: str) -> "Page":
        """The same slice of a list of ids with this prefix; ApiError when `after` cannot be one of them."""
        after = self.after if self.after is None else canonical_id(self.after)
        if after is not None and not after.startswith(prefix):
            raise bad_cursor(f"an item of this list ({prefix}...)")
        return Page(self.limit, after, self.ascending)


def clean_filename(name: str) -> str:
    """A name that is harmless wherever it is shown: NFC, no path, no control or bidi characters, at most 255 bytes."""
    bare = unicodedata.normalize("NFC", name).replace("\\", "/").rsplit("/", 1)[-1]
    shown = "".join(char for char in bare if char not in _BIDI and unicodedata.category(char)[0] != "C").strip()
    if len(shown.encode()) <= MAX_FILENAME_BYTES:
        return shown or "unnamed"
    stem, dot, ending = shown.rpartition(".")
    kept = (dot + ending).encode() if stem and len(ending) <= MAX_ENDING else b""
    return (stem if kept else shown).encode()[: MAX_FILENAME_BYTES - len(kept)].decode(errors="ignore") + kept.decode()


def is_suffix(text: str) -> bool:
    """Whether the text may stand in a model's name."""
    return _SUFFIX.fullmatch(text) is not None
