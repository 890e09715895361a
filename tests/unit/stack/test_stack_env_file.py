"""A shell that reads the file of a running stack knows where its servers are."""

import stat
import subprocess
from pathlib import Path

from luthier_stack.env_file import write_env_file


def test_a_shell_reads_what_was_written(tmp_path: Path) -> None:
    url = "mongodb://luthier:it's $HOME; #1@127.0.0.1:1/luthier?authSource=admin&w=majority"
    path = tmp_path / "env"
    for home in ("before", "a folder"):
        write_env_file(path, {"LUTHIER_MONGO_URL": url, "LUTHIER_HOME": home, "PATH": "/bin"})
    script = 'set -a; . "$1"; set +a; exec env -0'
    told = subprocess.run(["sh", "-c", script, "sh", str(path)], env={}, capture_output=True, check=True).stdout
    seen = dict(line.split("=", 1) for line in told.decode().split("\0") if line)
    assert (seen["LUTHIER_MONGO_URL"], seen["LUTHIER_HOME"]) == (url, "a folder")
    assert "PATH" not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
