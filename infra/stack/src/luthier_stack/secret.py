"""Random values that are made once and kept for their owner only."""

import os
import secrets
from pathlib import Path


def secret_in(path: Path, *, num_bytes: int) -> str:
    """A random value kept in a file that only its owner can read, made whole or not at all."""
    if not path.exists():
        fresh = path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(num_bytes))
        fresh.replace(path)
    return path.read_text().strip()
