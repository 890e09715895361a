"""`python -m luthier_registry`."""

from luthier_common.kit.room import run_room
from luthier_registry.bootstrap import main

if __name__ == "__main__":
    run_room("registry", main)
