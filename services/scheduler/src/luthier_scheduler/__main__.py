"""`python -m luthier_scheduler`."""

from luthier_common.kit.room import run_room
from luthier_scheduler.bootstrap import main

if __name__ == "__main__":
    run_room("scheduler", main)
