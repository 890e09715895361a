"""How a run is told to stop: SIGTERM raises a flag, the end of the parent kills.

Imported, and the flag raised, before anything slow: a signal during the imports must not be lost.
"""

import ctypes
import os
import signal
from types import FrameType

_PR_SET_PDEATHSIG = 1


class StopFlag:
    """True once SIGTERM came; the run saves what its last whole step made."""

    def __init__(self) -> None:
        self._is_set = False

    @classmethod
    def on_sigterm(cls) -> "StopFlag":
        """A flag that SIGTERM sets; SIGINT of a terminal is left to the parent."""
        flag = cls()
        signal.signal(signal.SIGTERM, flag._set)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return flag

    @property
    def is_set(self) -> bool:
        return self._is_set

    def _set(self, _number: int, _frame: FrameType | None) -> None:
        self._is_set = True


class StepDroppedError(Exception):
    """Asked to stop inside a step: the run stands at the end of the one before."""


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends; ends at once where that has happened already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)
