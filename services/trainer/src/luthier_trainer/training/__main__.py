"""`python -m luthier_trainer.training RUN_DIR`: one run, one process."""

import faulthandler
import os
import sys
from pathlib import Path

from luthier_trainer.protocol import PARENT_PID_VARIABLE
from luthier_trainer.training.stopping import StopFlag, die_with_parent

# Before the seconds that the next import takes: a signal meanwhile must not be lost.
stop = StopFlag.on_sigterm()
if PARENT_PID_VARIABLE in os.environ:
    die_with_parent(int(os.environ[PARENT_PID_VARIABLE]))
faulthandler.enable()
os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")

from luthier_trainer.training.run import run  # noqa: E402

if __name__ == "__main__":
    code = run(Path(sys.argv[1]), stop)
    sys.stdout.flush()
    sys.stderr.flush()
    # Libraries' threads and atexit hooks have nothing left to say, and must not hold up the end.
    os._exit(code)
