"""Ids carry their kind and sort by time: `<prefix><12 hex of milliseconds><12 random hex>`.

Twenty-four characters after the prefix, as OpenAI's job ids have; either separator (`ftjob-`, `ftjob_`) names the same
thing, so an id can be pasted from one dialect into another.
"""

import os
import re
import secrets
from datetime import datetime

JOB_PREFIX = "ftjob-"
FILE_PREFIX = "file-"
MODEL_PREFIX = "ftmodel-"
_UNFIT_FOR_NAMES = re.compile(r"[^A-Za-z0-9._-]+")
_NAME_ID_CHARACTERS = 12
_DRAWN_AT_ONCE = 256
_drawn: list[str] = []
os.register_at_fork(after_in_child=_drawn.clear)
_PREFIXES = (JOB_PREFIX, FILE_PREFIX, MODEL_PREFIX)


def new_id(prefix: str, now: datetime) -> str:
    """A fresh id that sorts after all ids made in earlier milliseconds."""
    return f"{prefix}{int(now.timestamp() * 1000):012x}{draw_hex()}"


def draw_hex() -> str:
    """12 random hex digits, of the system's source, read for many at once: each reading lets other threads go first."""
    while True:
        try:
            return _drawn.pop()
        except IndexError:
            digits = secrets.token_hex(6 * _DRAWN_AT_ONCE)
            _drawn.extend(digits[at : at + 12] for at in range(0, len(digits), 12))


def canonical_id(text: str) -> str:
    """The stored form of an id: `ftjob_x` becomes `ftjob-x`; anything else is returned unchanged."""
    for prefix in _PREFIXES:
        if text.startswith(prefix[:-1] + "_"):
            return prefix + text[len(prefix) :]
    return text


def spelled_with(separator: str, thing_id: str) -> str:
    """A stored id with a dialect's separator behind its prefix; what is no such id is returned unchanged."""
    for prefix in _PREFIXES:
        if thing_id.startswith(prefix):
            return prefix[:-1] + separator + thing_id[len(prefix) :]
    return thing_id


def core_of(thing_id: str) -> str:
    """The part of an id behind its prefix."""
    return thing_id.split("-", 1)[1] if "-" in thing_id else thing_id


def product_core(job_id: str, generation: int) -> str:
    """What the ids of a job's products are made of: the same for whoever computes it, another in each generation."""
    return core_of(job_id) + (f"g{generation}" if generation > 1 else "")


def model_id_of(job_id: str, generation: int) -> str:
    """The id of the model that a generation of a job makes."""
    return MODEL_PREFIX + product_core(job_id, generation)


def result_file_id_of(job_id: str, generation: int) -> str:
    """The id of the file with the metrics that a generation of a job makes."""
    return FILE_PREFIX + product_core(job_id, generation)


def model_name(base: str, org_name: str, suffix: str | None, model_id: str) -> str:
    """`ft:<base>:<org>:<suffix>:<id>`: opaque for everyone, since a base may hold `:` and `/`."""
    org = _UNFIT_FOR_NAMES.sub("-", org_name).strip("-") or "default"
    core, again, generation = core_of(model_id).partition("g")
    return f"ft:{base}:{org}:{suffix or ''}:{core[-_NAME_ID_CHARACTERS:]}{again}{generation}"
