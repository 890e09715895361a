"""Runs the check in a child process and says how it ended."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from subprocess import DEVNULL, PIPE

import msgspec

from luthier_file_validator.check import EXIT_BAD_BUNDLE, EXIT_NO_MEMORY, CheckSpec
from luthier_file_validator.checks import CheckReport
from luthier_file_validator.verdicts import Crash

_PASSED_ON = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
_LIMIT_SIGNALS = {-signal.SIGXCPU, -signal.SIGKILL, -signal.SIGABRT}


async def run_check(spec: CheckSpec, folder: Path, *, wall_s: float) -> CheckReport | Crash:
    """Check the file that `spec` names. `folder` is the child's own; a cancelled caller takes the child with it."""
    spec_path = folder / "spec.json"
    spec_path.write_bytes(msgspec.json.encode(spec))
    command = (sys.executable, "-m", "luthier_file_validator.check", str(spec_path), str(os.getpid()))
    process = await asyncio.create_subprocess_exec(
        *command, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE, env=_environment(), start_new_session=True
    )
    try:
        async with asyncio.timeout(wall_s):
            _, said = await process.communicate()
    except TimeoutError:
        return Crash.LIMITS
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == 0:
        return _read_report(Path(spec.report_path))
    if process.returncode == EXIT_NO_MEMORY or process.returncode in _LIMIT_SIGNALS or b"memory" in said:
        return Crash.LIMITS
    return Crash.BAD_BUNDLE if process.returncode == EXIT_BAD_BUNDLE else Crash.INTERNAL


def _read_report(path: Path) -> CheckReport:
    return msgspec.json.decode(path.read_bytes(), type=CheckReport)


def _environment() -> dict[str, str]:
    """No credentials, and one thread: limits are for the process as a whole."""
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return passed | {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
