"""How much of the proof a run takes: a sample in `make test`, all of it with LUTHIER_PROOF=full (`make proof`)."""

import os

FULL = os.environ.get("LUTHIER_PROOF") == "full"


def scaled(sample: int, full: int) -> int:
    """The number for this run."""
    return full if FULL else sample
