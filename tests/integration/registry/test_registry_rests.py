"""A job whose model cannot be stored rests, longer each time; the others get theirs. A look reads only what is due."""

import errno
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.builders.refusing_store import RefusingStore

from luthier_common.contract.ids import model_id_of
from luthier_common.kit.mongo import Database
from luthier_common.kit.objects import ObjectStoreUnavailableError
from luthier_registry.claims import Claims
from luthier_registry.register import Registrar
from luthier_registry.store import Store

Make = Callable[..., Any]
REFUSALS = [
    OSError(errno.ENOSPC, "No space left on device"),
    ClientError({"Error": {"Code": "AccessDenied"}}, "PutObject"),
    ObjectStoreUnavailableError("S3 answered SlowDown"),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: type(refusal).__name__)
async def test_a_job_whose_model_cannot_be_stored_rests_and_the_others_get_theirs(
    db: Database, train: Make, clock: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, refusal: Exception
) -> None:
    first, second = await train(), await train()
    disk = RefusingStore(tmp_path / "objects", f"models/{model_id_of(first.id, 1)}", refusal)
    registrar = Registrar(Store(db), disk, Claims(db, "registry-1", 5.0), clock)
    num_tries = []
    with caplog.at_level(logging.WARNING):
        for waited_s in (0, 1, 1.5, 2, 2.5):
            clock.now_s += waited_s
            await registrar.look()
            num_tries.append(disk.num_refused)
    assert [(await job.doc())["phase"] for job in (first, second)] == ["trained", "staged"]
    assert num_tries == [1, 1, 2, 2, 3]
    assert [record.__dict__["job_id"] for record in caplog.records] == [first.id] * 3
    disk.error = None
    clock.now_s += 60
    await registrar.look()
    assert (await first.doc())["phase"] == "staged"


async def test_models_that_were_deleted_long_ago_are_not_read_again(db: Database) -> None:
    gone = [{"_id": f"m{n}", "name": f"m{n}", "phase": "deleted", "released": True} for n in range(50)]
    await db["models"].insert_many([*gone, {"_id": "new", "name": "new", "phase": "deleted", "released": False}])
    query = {"phase": "deleted", "released": False}
    plan = await db.command({"explain": {"find": "models", "filter": query}, "verbosity": "executionStats"})
    assert plan["executionStats"]["totalDocsExamined"] == 1
    await Store(db).release_deleted_models()
    assert await db["models"].count_documents({"released": True}) == 51
