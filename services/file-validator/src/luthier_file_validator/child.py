"""Runs the check in a child process and says how it ended."""

import asyncio
import logging
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
_NO_MEMORY = (b"memory", b"bad_alloc")

log = logging.getLogger(__name__)


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
    if (crash := crash_of(process.returncode, said)) is Crash.INTERNAL:
        # What it said may hold a row's content, except for a name.
        name = said.decode(errors="replace")
        shown = name if name.isidentifier() else ""
        log.warning("a check ended by itself", extra={"exit_status": process.returncode, "error": shown})
    return crash


def _read_report(path: Path) -> CheckReport:
    return msgspec.json.decode(path.read_bytes(), type=CheckReport)


def crash_of(exit_status: int | None, said: bytes) -> Crash:
    """What ended the child. The processor limit tells by SIGXCPU, never by SIGKILL: that is the machine's own need."""
    if exit_status == EXIT_BAD_BUNDLE:
        return Crash.BAD_BUNDLE
    has_no_memory = exit_status == EXIT_NO_MEMORY or any(word in said.lower() for word in _NO_MEMORY)
    return Crash.LIMITS if has_no_memory or exit_status == -signal.SIGXCPU else Crash.INTERNAL


def _environment() -> dict[str, str]:
    """No credentials, and one thread: limits are for the process as a whole."""
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return passed | {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
