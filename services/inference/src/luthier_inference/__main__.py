"""`python -m luthier_inference`."""

from luthier_common.kit.room import run_room
from luthier_inference.bootstrap import main

if __name__ == "__main__":
    run_room("inference", main)
