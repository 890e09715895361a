"""A store that fails in the middle of a checkpoint: what it has is not sent again."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

from builders.refusing_store import RefusingStore
from builders.trainer_node import World
from luthier_common.kit.objects import ObjectStoreUnavailableError, Stored
from luthier_trainer.checkpoints import ADAPTER_FILES, MANIFEST_FILE, STATE_FILES, seal, staged
from luthier_trainer.insisting import Insist
from luthier_trainer.transfers import upload_directory


class FailsOnce(RefusingStore):
    """It refuses one put, then takes all; `sent` counts those of each name."""

    sent: Counter[str]

    async def _put(self, key: str, chunks: AsyncIterator[bytes], if_absent: bool) -> Stored:
        self.sent[key.rpartition("/")[2]] += 1
        try:
            return await super()._put(key, chunks, if_absent)
        except ObjectStoreUnavailableError:
            self.error = None
            raise


async def test_only_the_file_that_failed_is_sent_again(world: World, tmp_path: Path) -> None:
    store = world.store()
    story = await world.placed_job(store, validation_file=None)
    run = await world.run_of(story)
    with staged(tmp_path / "step-1") as staging:
        for name in (*ADAPTER_FILES, *STATE_FILES):
            (staging / name).write_text(name)
        digest = seal(staging, "checkpoint", story.id, 1, 1, {})
    objects = FailsOnce(world.root / "objects", STATE_FILES[-1], ObjectStoreUnavailableError("503"))
    objects.sent = Counter()
    async with asyncio.timeout(30):
        await upload_directory(store, objects, run, tmp_path / "step-1", f"{run.prefix}step-1/", digest, Insist(900.0))
    assert objects.sent.pop(STATE_FILES[-1]) == 2
    assert set(objects.sent) == {*ADAPTER_FILES, *STATE_FILES[:-1], MANIFEST_FILE}
    assert set(objects.sent.values()) == {1}
