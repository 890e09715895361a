"""Does to a running stack what the plan says, and keeps the books on what really happened."""

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chaos.disks import SmallDisk
from chaos.plan import CHILD, Fault, Kind
from luthier_stack.errors import PartFailedError
from luthier_stack.stack import Stack
from luthier_trainer.workplace import PID_FILE

WAIT_FOR_VICTIM_S = 20.0
_POLL_S = 0.05


@dataclass(frozen=True)
class Done:
    """A fault that happened, from when to when (monotonic)."""

    fault: Fault
    since: float
    until: float


class Saboteur:
    def __init__(self, stack: Stack, home: Path, disks: Mapping[str, SmallDisk]) -> None:
        self._stack = stack
        self._home = home
        self._disks = disks
        self.done: list[Done] = []
        self.missed: Counter[tuple[Kind, str]] = Counter()

    async def wait_for_child(self, seconds: float) -> None:
        """Until a run is under way: before that there is little to hurt."""
        deadline = time.monotonic() + seconds
        while self._child() is None and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)

    async def carry_out(self, plan: Sequence[Fault]) -> None:
        """Each fault at its time, whether the one before is over or not; back when all are over."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for fault in plan:
                await asyncio.sleep(max(0.0, began + fault.at_s - time.monotonic()))
                group.create_task(self._do(fault))

    async def _do(self, fault: Fault) -> None:
        since = time.monotonic()
        if fault.kind is Kind.FILL_DISK:
            happened = await self._fill(fault)
        else:
            happened = await self._signal(fault)
        if happened:
            self.done.append(Done(fault, since, time.monotonic()))
        else:
            self.missed[(fault.kind, fault.victim)] += 1

    async def _fill(self, fault: Fault) -> bool:
        """While a run is under way: its saves are what the full disk must hit."""
        disk = self._disks.get(fault.victim)
        if disk is None:
            return False
        await self._pid_of(CHILD)
        before = disk.num_refusals
        await disk.full(fault.hold_s)
        return disk.num_refusals > before

    async def _signal(self, fault: Fault) -> bool:
        pid = await self._pid_of(fault.victim)
        if pid is None:
            return False
        number = signal.SIGSTOP if fault.hold_s else signal.SIGKILL
        try:
            if fault.victim == CHILD:
                os.kill(pid, number)
            else:
                self._stack.kill(fault.victim, number)
        except (ProcessLookupError, PartFailedError):
            return False
        if fault.hold_s:
            await asyncio.sleep(fault.hold_s)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        return True

    async def _pid_of(self, victim: str) -> int | None:
        """Its process, which may have to come back first."""
        deadline = time.monotonic() + WAIT_FOR_VICTIM_S
        while time.monotonic() < deadline:
            pid = self._child() if victim == CHILD else self._stack.processes[victim]
            if pid is not None:
                return pid
            await asyncio.sleep(_POLL_S)
        return None

    def _child(self) -> int | None:
        """A training child that is alive now."""
        for note in sorted(self._home.glob(f"trainer/*/*/{PID_FILE}")):
            with contextlib.suppress(OSError, ValueError):
                pid = int(note.read_text())
                if os.fsencode(note.parent) in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        return None
