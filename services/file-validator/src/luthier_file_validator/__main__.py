"""`python -m luthier_file_validator`."""

from luthier_common.kit.room import run_room
from luthier_file_validator.bootstrap import main

if __name__ == "__main__":
    run_room("file-validator", main)
