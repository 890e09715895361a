"""Where the servers of a running stack are, for a shell: `set -a; . .luthier/env; set +a`."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path

ENV_FILE = "env"
API_URL_FILE = "api-url"
"""Where the API of a running stack listens, for `luthier --home`: its admin key is sent nowhere else."""


def write_env_file(path: Path, env: Mapping[str, str]) -> None:
    """Write all `LUTHIER_*` variables as a shell reads them. It holds passwords: for its owner alone."""
    lines = [f"{name}={shlex.quote(value)}\n" for name, value in sorted(env.items()) if name.startswith("LUTHIER_")]
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.writelines(lines)
    part.replace(path)
