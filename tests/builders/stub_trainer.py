"""`python stub_trainer.py PACE_FILE`: the real trainer, whose children are `stub_child.py`."""

import json
import os
import sys
from functools import partial
from pathlib import Path

from luthier_common.kit.room import run_room
from luthier_trainer.bootstrap import STOP_AFTER_S, main
from luthier_trainer.executor import LocalExecutor

PACE_FILE = "stub-pace.json"
CHILD = Path(__file__).with_name("stub_child.py")


def set_pace(home: Path, **pace: float) -> Path:
    """Have the stubs of a stack work at this pace from their next step on; `Pace` says what there is."""
    home.mkdir(parents=True, exist_ok=True)
    fresh = home / f".{PACE_FILE}.{os.getpid()}"
    fresh.write_text(json.dumps(pace))
    return fresh.replace(home / PACE_FILE)


def command_of(pace_file: Path) -> tuple[str, ...]:
    """How the stack starts the trainer with stubs at this pace."""
    return sys.executable, "-P", str(Path(__file__)), str(pace_file)


def stub_executor(pace_file: Path) -> LocalExecutor:
    """Children that train nothing."""
    return LocalExecutor((sys.executable, "-P", str(CHILD), str(pace_file)))


if __name__ == "__main__":
    run_room("trainer", partial(main, executor=stub_executor(Path(sys.argv[1]))), stop_after_s=STOP_AFTER_S)
