"""Brings a file and a base's text bundle to the child and its report back."""

import fcntl
import logging
import os
import shutil
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from luthier_common.contract.events import Problem
from luthier_common.contract.spec import OnOverlength
from luthier_common.kit.bases import TEXT_FILES, BaseMissingError, BundleCorruptError, fetch_base
from luthier_common.kit.errors import TransientError
from luthier_common.kit.mongo import Doc
from luthier_common.kit.objects import ObjectMissingError
from luthier_file_validator.check import CheckSpec
from luthier_file_validator.checks import CheckReport
from luthier_file_validator.child import run_check
from luthier_file_validator.settings import FileValidatorSettings
from luthier_file_validator.store import Store
from luthier_file_validator.telemetry import count_rows
from luthier_file_validator.verdicts import Crash, crash_problem, storage_problem

log = logging.getLogger(__name__)
PREFIX = "check-"
MAX_KEPT_REPORTS = 256
MAX_KEPT_FINDINGS = 100
"""Reports with more are not kept, so that all of them take little memory."""


class CheckFaultError(TransientError):
    """The machine, not the file, ended a check: a full disk, say, or memory that others took."""


@dataclass(frozen=True)
class Rules:
    """What a file is checked by, beside the limits of every check. `bundle` holds a base's text files, by digest."""

    bundle: Path | None
    min_examples: int
    max_examples: int | None = None
    file_role: str = "The"
    max_length: int | None = None
    on_overlength: OnOverlength = "error"


class Checker:
    def __init__(self, store: Store, settings: FileValidatorSettings) -> None:
        self._store = store
        self._settings = settings
        self._root = settings.home.absolute() / "file-validator"
        self._scratch = self._root
        self._bases = settings.home.absolute() / "bases"
        self._known: OrderedDict[tuple[str, Rules], CheckReport] = OrderedDict()

    def prepare(self) -> None:
        """Make a scratch directory of this process's own, and drop those of processes that are gone."""
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        making = os.open(self._root, os.O_RDONLY)
        try:
            fcntl.flock(making, fcntl.LOCK_EX)
            for left in self._root.glob(f"{PREFIX}*"):
                if not _is_in_use(left):
                    shutil.rmtree(left, ignore_errors=True)
            self._scratch = Path(mkdtemp(prefix=PREFIX, dir=self._root))
            # Closed by the kernel alone, when this process ends, however it ends.
            fcntl.flock(os.open(self._scratch, os.O_RDONLY), fcntl.LOCK_EX)
        finally:
            os.close(making)

    def leave(self) -> None:
        """An orderly end: nothing stays."""
        shutil.rmtree(self._scratch, ignore_errors=True)

    async def find_bundle(self, base: str) -> Path | None:
        """The directory of a base's text files; None when the catalogue has no such base, or a damaged one."""
        try:
            return await fetch_base(self._store.db, self._store.objects, base, self._bases, only=TEXT_FILES)
        except (BaseMissingError, BundleCorruptError, ObjectMissingError) as error:
            log.warning("the base cannot be used: %s", error.code, extra={"base": base})
            return None

    async def check(self, file: Doc, rules: Rules, *, lease_name: str) -> CheckReport | Problem:
        """The report of a stored file, or the problem that kept it from being read to its end.

        What was read by the same rules is not read again: many jobs on one file wait for the checks that run at first.
        CheckFaultError when the machine kept it from that, which is a problem only after some tries, or has no room.
        """
        key = (file["_id"], rules)
        if (known := self._known.get(key)) is not None:
            self._known.move_to_end(key)
            return known
        report = await self._read(file, rules, lease_name)
        if isinstance(report, CheckReport) and len(report.findings) <= MAX_KEPT_FINDINGS:
            self._known[key] = report
            if len(self._known) > MAX_KEPT_REPORTS:
                self._known.popitem(last=False)
        return report

    async def _read(self, file: Doc, rules: Rules, lease_name: str) -> CheckReport | Problem:
        self._require_room(file["bytes"])
        time_factor = self._settings.time_factor(file["bytes"])
        with TemporaryDirectory(dir=self._scratch) as name:
            folder = Path(name)
            try:
                digest = await self._store.objects.download(file["object_key"], folder / "file.jsonl")
            except ObjectMissingError:
                return storage_problem()
            if digest != file["sha256"]:
                return storage_problem()
            spec = CheckSpec(
                path=str(folder / "file.jsonl"),
                report_path=str(folder / "report.json"),
                min_examples=rules.min_examples,
                max_examples=rules.max_examples,
                max_findings=self._settings.max_findings,
                memory_bytes=self._settings.check_memory_bytes,
                cpu_s=int(self._settings.check_cpu_s * time_factor),
                file_role=rules.file_role,
                bundle=str(rules.bundle) if rules.bundle is not None else None,
                max_length=rules.max_length,
                on_overlength=rules.on_overlength,
            )
            report = await run_check(spec, folder, wall_s=self._settings.check_wall_s * time_factor)
        if report is Crash.INTERNAL:
            if not await self._store.count_fault(lease_name):
                raise CheckFaultError("the check ended by itself and rests")
        else:
            await self._store.forget_faults(lease_name)
        if isinstance(report, Crash):
            return crash_problem(report)
        count_rows(report)
        return report

    def _require_room(self, num_bytes: int) -> None:
        """Before a download that would end in nothing."""
        if shutil.disk_usage(self._scratch).free < num_bytes:
            raise CheckFaultError(f"there is no room for a file of {num_bytes} bytes")


def _is_in_use(scratch: Path) -> bool:
    """Whether the process that made this directory lives."""
    try:
        handle = os.open(scratch, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
