"""`admin backup`: makes, checks and restores backups from the command line."""

import sys
from pathlib import Path

from luthier_api.backup import BackupError, Manifest, create, restore, verify
from luthier_api.settings import ApiSettings
from luthier_common.kit.mongo import OUTAGES
from luthier_common.kit.servers import open_database, open_store

SLOW_S = 120.0
"""Reading or writing a batch may take long beside a busy system."""


async def run(settings: ApiSettings, verb: str, folder: Path) -> None:
    """Do one of `create`, `verify` and `restore`. Raises BackupError with what is wrong."""
    if verb == "verify":
        _tell("the backup is as it was written", await verify(folder))
        return
    async with (
        open_database(settings, timeout_s=SLOW_S) as db,
        open_store(settings) as objects,
    ):
        try:
            if verb == "restore":
                manifest = await restore(db, objects, folder)
                _tell(f"restored as incarnation {manifest.incarnation}; start the services", manifest)
                return
            manifest = await create(db, objects, folder)
        except OUTAGES as error:
            raise BackupError(f"a server did not answer; nothing usable was made: {error}") from error
    _tell(f"backup in {folder}; keep the pepper beside it, in another place", manifest)
    if manifest.missing:
        more = f" and {len(manifest.missing) - 5} more" if len(manifest.missing) > 5 else ""
        raise BackupError(f"complete but for objects that are gone or damaged: {', '.join(manifest.missing[:5])}{more}")


def _tell(what: str, manifest: Manifest) -> None:
    num_documents = sum(dumped.count for dumped in manifest.collections.values())
    sys.stdout.write(
        f"{what}\n{num_documents} documents in {len(manifest.collections)} collections, "
        f"{manifest.objects.count} objects of {manifest.objects.bytes} bytes\n"
    )
