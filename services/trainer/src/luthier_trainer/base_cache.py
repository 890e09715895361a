"""Base models on this node's disk: fetched once, lent to runs, dropped when something else needs the room."""

import errno
import math
import os
import shutil
from pathlib import Path

from luthier_common.kit.bases import drop_cached, fetch_files
from luthier_common.kit.mongo import Doc
from luthier_common.kit.objects import ObjectStore, in_thread

_NO_LINKS_HERE = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK)


class BaseCache:
    """A directory of bundles below `root`, each named by its digest."""

    def __init__(self, objects: ObjectStore, root: Path) -> None:
        self._objects = objects
        self._root = root.absolute()

    async def lend(self, base: Doc, target: Path) -> Path:
        """Have a bundle in `target`, a run's own directory, where it stays whatever becomes of the cache."""
        cached = self._root / str(base["digest"])
        num_missing = sum(file["bytes"] for file in base["files"] if not (cached / file["name"]).exists())
        await in_thread(self.make_room, num_missing, cached.name)
        await fetch_files(self._objects, base["key"], base["files"], cached)
        await in_thread(_link, [file["name"] for file in base["files"]], cached, target)
        return target

    def make_room(self, num_bytes: float = math.inf, spared: str | None = None) -> bool:
        """Drop what was used longest ago, but not `spared`, until so many bytes are free; whether anything was dropped.

        What a run has borrowed stays: it takes its room until the run ends.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        is_any = False
        for bundle in sorted(self._root.iterdir(), key=lambda path: path.stat().st_mtime):
            if shutil.disk_usage(self._root).free >= num_bytes:
                break
            if bundle.name != spared and not _is_lent(bundle):
                drop_cached(bundle)
                is_any = True
        return is_any


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


def _is_lent(bundle: Path) -> bool:
    """Whether some run has its files under another name."""
    return any(file.stat().st_nlink > 1 for file in bundle.iterdir())
