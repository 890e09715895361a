"""Runs a command that dies with its parent: asks Linux for SIGKILL at the parent's death, then becomes the command.

Started as a plain file by a bare interpreter (`python -I -S launch.py PARENT_PID COMMAND...`), so that it costs some
20 ms and no fork hook in the runner. The parent may die before the request is made, hence the look at its pid after it.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
PARENT_GONE = 70


def main(argv: list[str]) -> None:
    """Tie this process to its parent and replace it by the command."""
    parent_pid, command = int(argv[0]), argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent_pid:
            sys.exit(PARENT_GONE)
    try:
        os.execvp(command[0], command)  # noqa: S606 - running the given command is what this file is for
    except OSError as error:
        sys.exit(f"cannot run {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
