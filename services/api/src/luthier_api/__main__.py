"""`python -m luthier_api`."""

from luthier_api.bootstrap import main
from luthier_common.kit.room import run_room

if __name__ == "__main__":
    run_room("api", main)
