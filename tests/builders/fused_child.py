"""`python fused_child.py FUSE_FILE RUN_DIR`: the real training process, which kills itself at the instant of its fuse.

The fuse is a JSON file with one of: `after_s` (since the start), `touch` (the nth time that it opens, makes, renames
or removes something among its checkpoints), `step` (the nth optimiser step of this process was made, nothing of it
was reported or saved). It burns once: the file is removed and a line says in `FUSE_FILE.burnt` where it was.
"""

import json
import os
import runpy
import signal
import sys
import threading
import time
from itertools import count
from pathlib import Path
from typing import Any

WATCHED = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "tempfile.mkdtemp")
LOOP = "luthier_trainer.training.loop"


class Fuse:
    """Ends this process without a word."""

    def __init__(self, path: Path, output: str) -> None:
        self._path = path
        self._output = output
        self._touches = count(1)
        self._steps = count(1)
        self._plan: dict[str, float] = json.loads(path.read_bytes()) if path.exists() else {}

    def lay(self) -> None:
        if after_s := self._plan.get("after_s"):
            timer = threading.Timer(after_s, self._burn, args=(f"after {after_s:.2f} s",))
            timer.daemon = True
            timer.start()
        if "touch" in self._plan:
            sys.addaudithook(self._touched)
        if "step" in self._plan:
            threading.Thread(target=self._wait_for_loop, daemon=True).start()

    def _touched(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in WATCHED or not isinstance(args[0], str | os.PathLike):
            return
        place = os.fspath(args[0])
        if isinstance(place, str) and self._output in place and next(self._touches) == self._plan["touch"]:
            self._burn(f"{event} {place.partition(self._output)[2]}")

    def _wait_for_loop(self) -> None:
        """The class is there seconds before its first instance."""
        while (trainer := getattr(sys.modules.get(LOOP), "RunTrainer", None)) is None:
            time.sleep(0.005)
        report = trainer._maybe_log_save_evaluate

        def counted(of: Any, *args: Any, **kwargs: Any) -> None:
            if next(self._steps) == self._plan["step"]:
                self._burn(f"step {of.state.global_step} made, not saved")
            report(of, *args, **kwargs)

        trainer._maybe_log_save_evaluate = counted

    def _burn(self, where: str) -> None:
        self._path.unlink()
        with self._path.with_suffix(".burnt").open("a") as stream:
            stream.write(f"{where}\n")
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    _, fuse_file, run_dir = sys.argv
    Fuse(Path(fuse_file), f"{run_dir}/out").lay()
    sys.argv = [sys.argv[0], run_dir]
    runpy.run_module("luthier_trainer.training", run_name="__main__", alter_sys=True)
