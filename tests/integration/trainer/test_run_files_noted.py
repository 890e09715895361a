"""An object of a run is noted in the ledger before it is stored: a trainer that dies between leaves no stranger."""

from pathlib import Path

import pytest

from builders.trainer_node import World
from luthier_common.kit import ledger
from luthier_common.kit.failpoints import FailPointError, configure_failpoints
from luthier_trainer.transfers import METRICS_FILE, upload_run_file


async def test_the_series_of_a_run_is_noted_before_it_is_stored(world: World, tmp_path: Path) -> None:
    store = world.store()
    run = await world.run_of(await world.placed_job(store, validation_file=None))
    series = tmp_path / METRICS_FILE
    series.write_text("{}\n")
    configure_failpoints("trainer.before_run_file=raise")
    try:
        with pytest.raises(FailPointError):
            await upload_run_file(store, world.objects, run, series, METRICS_FILE)
    finally:
        configure_failpoints()
    assert await world.db[ledger.COLLECTION].find_one({"_id": run.prefix + METRICS_FILE}) is not None
