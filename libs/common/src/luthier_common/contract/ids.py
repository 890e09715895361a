"""Ids carry their kind and sort by time: `<prefix><12 hex of milliseconds><12 random hex>`.

Twenty-four characters after the prefix, as OpenAI's job ids have; either separator (`ftjob-`, `ftjob_`) names the same
thing, so an id can be pasted from one dialect into another.
"""

import secrets
from datetime import datetime

JOB_PREFIX = "ftjob-"
FILE_PREFIX = "file-"
MODEL_PREFIX = "ftmodel-"
_PREFIXES = (JOB_PREFIX, FILE_PREFIX, MODEL_PREFIX)


def new_id(prefix: str, now: datetime) -> str:
    """A fresh id that sorts after all ids made in earlier milliseconds."""
    return f"{prefix}{int(now.timestamp() * 1000):012x}{secrets.token_hex(6)}"


def canonical_id(text: str) -> str:
    """The stored form of an id: `ftjob_x` becomes `ftjob-x`; anything else is returned unchanged."""
    for prefix in _PREFIXES:
        if text.startswith(prefix[:-1] + "_"):
            return prefix + text[len(prefix) :]
    return text


def core_of(thing_id: str) -> str:
    """The part of an id behind its prefix."""
    return thing_id.split("-", 1)[1] if "-" in thing_id else thing_id
