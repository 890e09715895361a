"""Base models on this node's disk: fetched once, lent to runs, dropped when something else needs the room."""

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

from luthier_common.kit.bases import drop_unused, fetch_files
from luthier_common.kit.mongo import Doc
from luthier_common.kit.objects import ObjectStore, in_thread

_NO_LINKS_HERE = (errno.EXDEV, errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EMLINK)


class BaseCache:
    """A directory of bundles below `root`, each named by its digest."""

    def __init__(self, objects: ObjectStore, root: Path) -> None:
        self._objects = objects
        self._root = root.absolute()

    async def lend(self, base: Doc, target: Path) -> Path:
        """Have a bundle in `target`, a run's own directory, where it stays whatever becomes of the cache."""
        cached = self._root / str(base["digest"])
        num_missing = sum(file["bytes"] for file in base["files"] if not (cached / file["name"]).exists())
        await in_thread(self._make_room, num_missing, cached.name)
        await fetch_files(self._objects, base["key"], base["files"], cached)
        await in_thread(_link, [file["name"] for file in base["files"]], cached, target)
        return target

    def drop_one(self, spared: str) -> bool:
        """Drop what was used longest ago, but not `spared`; False where nothing can be dropped.

        What a run has borrowed stays: it takes its room until the run ends. So does what another process fetches, or
        an engine of this machine serves.
        """
        bundles = [path for path in self._root.iterdir() if path.is_dir() and path.name != spared]
        return any(_drop(bundle) for bundle in sorted(bundles, key=lambda path: path.stat().st_mtime))

    def _make_room(self, num_bytes: int, spared: str) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        while shutil.disk_usage(self._root).free < num_bytes and self.drop_one(spared):
            pass


def _link(names: list[str], cached: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for name in names:
        (target / name).unlink(missing_ok=True)
        try:
            os.link(cached / name, target / name)
        except OSError as error:
            if error.errno not in _NO_LINKS_HERE:
                raise
            shutil.copyfile(cached / name, target / name)


def _drop(bundle: Path) -> bool:
    """Drop it unless it is used; whether it is gone. What cannot be read is none of ours (`lost+found`)."""
    with suppress(OSError):
        is_lent = any(file.stat().st_nlink > 1 for file in bundle.iterdir())
        return not is_lent and drop_unused(bundle)
    return False
