"""The first loop: files that were uploaded get their verdict."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice, zip_longest

from luthier_common.contract.events import FileValidated, Problem
from luthier_common.kit import ledger
from luthier_common.kit.failpoints import failpoint
from luthier_file_validator.checker import Checker, Rules
from luthier_file_validator.store import Store
from luthier_file_validator.verdicts import FINE_TUNE, crash_report, file_verdict
from luthier_file_validator.workers import Waiting, Workers

log = logging.getLogger(__name__)
UNREAD_AT_ONCE = 100


def in_turn(queues: Iterable[Sequence[str]]) -> Iterator[str]:
    """The first of each queue, then the second of each, and so on."""
    for row in zip_longest(*queues):
        yield from (name for name in row if name is not None)


class FileLoop:
    def __init__(self, store: Store, checker: Checker, workers: Workers, default_base: str) -> None:
        self._store = store
        self._checker = checker
        self._workers = workers
        self._default_base = default_base

    async def look(self) -> None:
        """Start what is to be done; does not wait for checks."""
        held = await self._store.held_leases("validate/")
        self._workers.forget_offers()
        unread: dict[str, list[str]] = {}
        async for page in self._store.uploaded_files():
            for file in page:
                if file["purpose"] != FINE_TUNE:
                    unread.setdefault(file["project"], []).append(file["_id"])
                    continue
                name = f"validate/{file['_id']}"
                if name in held:
                    continue
                work = partial(self._validate, file["_id"], name)
                self._workers.offer(Waiting(name, file["project"], file["bytes"], work))
        self._workers.start()
        for file_id in islice(in_turn(unread.values()), UNREAD_AT_ONCE):
            await failpoint("validator.before_unread_verdict")
            await self._store.state_verdict(file_id, FileValidated(valid=True))

    async def _validate(self, file_id: str, lease_name: str) -> None:
        file = await self._store.read_file(file_id)
        if file is None or file["phase"] != "uploaded":
            return
        bundle = await self._checker.find_bundle(self._default_base)
        # How few are too few is the job's business; a file needs one example to be a data file at all.
        found = await self._checker.check(file, Rules(bundle, min_examples=1), lease_name=lease_name)
        problem = found if isinstance(found, Problem) else None
        report = crash_report(found) if isinstance(found, Problem) else found
        key = f"{file['org']}/{file['project']}/files/{file_id}{ledger.REPORT}"
        digest = await self._store.write_report(key, report, file, f"file/{file_id}")
        await failpoint("validator.before_verdict")
        verdict = file_verdict(report, key, digest, problem)
        stated = await self._store.state_verdict(file_id, verdict)
        log.info("verdict", extra={"file_id": file_id, "valid": verdict.valid, "outcome": stated.outcome})
