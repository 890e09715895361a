"""Does to a running stack what the plan says, and keeps the books on what really happened."""

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from builders.rivals import SECOND_HOME
from chaos.disks import SmallDisk
from chaos.plan import CHILD, TRAINERS, Fault, Kind
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


class Process(Protocol):
    """One that is started again when it dies."""

    @property
    def pid(self) -> int | None: ...

    def kill(self, number: signal.Signals) -> None: ...


class Saboteur:
    """Knows the parts of the stack, and others beside it by name."""

    def __init__(self, stack: Stack, others: Mapping[str, Process], disks: Mapping[str, SmallDisk]) -> None:
        self._stack = stack
        self._others = others
        self._homes = dict(zip(TRAINERS, (stack.home, stack.home / SECOND_HOME), strict=True))
        self._disks = disks
        self.done: list[Done] = []
        self.missed: Counter[tuple[Kind, str]] = Counter()

    async def wait_for_child(self, seconds: float) -> None:
        """Until a run is under way: before that there is little to hurt."""
        deadline = time.monotonic() + seconds
        while self._child(*self._homes) is None and time.monotonic() < deadline:
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
        """A trainer is stopped past its lease while it has a run: that is whose lease ends."""
        if fault.kind is Kind.LONG_STOP and fault.victim in TRAINERS:
            await self._found(lambda: self._child(fault.victim))
        pid = await self._pid_of(fault.victim)
        if pid is None:
            return False
        number = signal.SIGSTOP if fault.hold_s else signal.SIGKILL
        try:
            if fault.victim == CHILD:
                os.kill(pid, number)
            elif fault.victim in self._others:
                self._others[fault.victim].kill(number)
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
        if victim == CHILD:
            return await self._found(lambda: self._child(*self._homes))
        if victim in self._others:
            return await self._found(lambda: self._others[victim].pid)
        return await self._found(lambda: self._stack.processes[victim])

    async def _found(self, look: Callable[[], int | None]) -> int | None:
        deadline = time.monotonic() + WAIT_FOR_VICTIM_S
        while time.monotonic() < deadline:
            if (pid := look()) is not None:
                return pid
            await asyncio.sleep(_POLL_S)
        return None

    def _child(self, *trainers: str) -> int | None:
        """A training child of one of these that is alive now."""
        notes = [note for name in trainers for note in self._homes[name].glob(f"trainer/*/*/{PID_FILE}")]
        for note in sorted(notes):
            with contextlib.suppress(OSError, ValueError):
                pid = int(note.read_text())
                if os.fsencode(note.parent) in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        return None
