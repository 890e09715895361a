"""A directory of objects that does not take some of them."""

from collections.abc import AsyncIterator
from pathlib import Path

from luthier_common.kit.objects import Stored
from luthier_common.kit.objects_file import FileObjects


class RefusingStore(FileObjects):
    """Until `error` is None, a put under a key that holds `part` ends with it, as the disk or the server would say."""

    def __init__(self, root: Path, part: str, error: Exception) -> None:
        super().__init__(root)
        self._part = part
        self.error: Exception | None = error
        self.num_refused = 0

    async def _put(self, key: str, chunks: AsyncIterator[bytes], if_absent: bool) -> Stored:
        if self.error is not None and self._part in key:
            self.num_refused += 1
            raise self.error
        return await super()._put(key, chunks, if_absent)
