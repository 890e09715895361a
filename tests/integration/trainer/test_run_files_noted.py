"""An object of a run is noted in the ledger before it is stored: a trainer that dies between leaves no stranger."""

from pathlib import Path

import pytest

from builders.trainer_node import NODE, World
from luthier_common.kit import ledger
from luthier_common.kit.failpoints import FailPointError, configure_failpoints
from luthier_trainer.domain import assignment_of, claims_of
from luthier_trainer.transfers import METRICS_FILE, upload_run_file


async def test_the_series_of_a_run_is_noted_before_it_is_stored(world: World, tmp_path: Path) -> None:
    store = world.store()
    await world.join(store)
    await store.renew()
    story = await world.job(validation_file=None)
    await world.place(story)
    node = await world.db["nodes"].find_one({"_id": NODE})
    assert node is not None
    run = assignment_of(claims_of(node["slots"])[0], await story.doc())
    series = tmp_path / METRICS_FILE
    series.write_text("{}\n")
    configure_failpoints("trainer.before_run_file=raise")
    try:
        with pytest.raises(FailPointError):
            await upload_run_file(store, world.objects, run, series, METRICS_FILE)
    finally:
        configure_failpoints()
    assert await world.db[ledger.COLLECTION].find_one({"_id": run.prefix + METRICS_FILE}) is not None
