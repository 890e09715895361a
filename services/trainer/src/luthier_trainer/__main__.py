"""`python -m luthier_trainer`: the supervisor of one node."""

from luthier_common.kit.room import run_room
from luthier_trainer.bootstrap import STOP_AFTER_S, main

if __name__ == "__main__":
    run_room("trainer", main, stop_after_s=STOP_AFTER_S)
