"""What becomes of a trained job: its model, its result file and its lineage, whatever happens on the way."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from tests.builders.jobs import ACTOR, JobStory

from luthier_common.contract import events as f
from luthier_common.contract.envelope import Actor
from luthier_common.contract.topics import Kind
from luthier_common.journal.advance import advance, create
from luthier_common.kit import ledger
from luthier_common.kit.failpoints import FailPointError
from luthier_common.kit.mongo import Database, Doc
from luthier_common.kit.objects import ObjectStore

Make = Callable[..., Any]
VERIFIED = f.ServingVerified(node="engine-1", num_golden_rows=1, num_answer_tokens=4, latency_s=0.1)
CSV = (
    "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy,"
    "train_mean_token_accuracy,validation_mean_token_accuracy,full_valid_loss,full_valid_mean_token_accuracy\n"
    "1,2.5,0.25,,,0.25,,,\n"
    "2,2.0,0.5,,,0.5,,2.25,0.375\n"
)


async def only_model(db: Database) -> Doc:
    (model,) = await db["models"].find().to_list(None)
    return dict(model)


async def said(db: Database, collection: str) -> list[str]:
    """The facts of every thing of a kind, in order; nothing trims outboxes here."""
    return [entry["type"] async for doc in db[collection].find() for entry in doc["outbox"]]


async def finish(registry: Any, job: JobStory) -> None:
    for _ in range(8):
        registry.clock.now_s += 5
        await registry.look()
        if (await job.doc())["phase"] == "staged":
            await job.tell(VERIFIED, op_id="1/verify")
        if (await job.doc())["status"] in ("succeeded", "failed", "cancelled"):
            await registry.look()


async def test_a_trained_job_becomes_a_published_model(
    db: Database, objects: ObjectStore, make_registry: Make, train: Make
) -> None:
    job = await train(suffix="mine")
    registry = make_registry()
    await registry.look()
    staged = (await job.doc())["staged"]
    assert (await job.doc())["phase"] == "staged"
    assert (await only_model(db))["phase"] == "staged"
    await job.tell(VERIFIED, op_id="1/verify")
    await registry.look()
    doc, model = await job.doc(), await only_model(db)
    assert (doc["status"], model["phase"]) == ("succeeded", "published")
    assert doc["fine_tuned_model"] == model["name"] == staged["model_name"]
    assert model["name"].startswith("ft:Tiny:default:mine:")
    assert model["_id"] == staged["model_id"] == f"ftmodel-{job.id.removeprefix('ftjob-')}"
    for file in model["files"]:
        assert (await objects.head(model["blob"]["key"] + file["name"])).bytes == file["bytes"]
    assert await objects.head(model["blob"]["key"] + "manifest.json") is not None


async def test_the_weights_are_files_of_the_job(
    db: Database, objects: ObjectStore, make_registry: Make, train: Make
) -> None:
    job = await train()
    await finish(make_registry(), job)
    doc, model = await job.doc(), await only_model(db)
    files = [await db["files"].find_one({"_id": file_id}) for file_id in doc["weights_files"]]
    names = ["adapter_config.json", "adapter_model.safetensors"]
    assert [file["filename"] for file in files] == [f"{model['_id']}/{name}" for name in names]
    assert {(file["purpose"], file["status"], file["job"]) for file in files} == {
        ("fine-tune-results", "processed", job.id)
    }
    assert [len(await objects.read(file["object_key"])) for file in files] == [file["bytes"] for file in files]


async def test_weights_of_a_job_that_was_cancelled_at_the_last_moment_are_not_kept(
    db: Database, make_registry: Make, train: Make, faults: Make, tmp_path: Any
) -> None:
    job = await train()
    registry = make_registry()
    await registry.look()
    await job.tell(VERIFIED, op_id="1/verify")
    faults("registry.after_weights_files=raise*1", "seed", str(tmp_path / "faults.log"))
    with contextlib.suppress(FailPointError):
        await registry.look()
    assert await db["files"].count_documents({"phase": "processed"}) == 3
    assert (await job.tell(f.JobCancelled())).applied
    await registry.look()
    assert await db["files"].count_documents({"phase": "processed"}) == 1
    assert [row["references"] async for row in db[ledger.COLLECTION].find({"_id": {"$regex": "/models/"}})] == [[]]


@pytest.mark.parametrize("is_cancelled", [False, True], ids=["goes on", "is cancelled"])
@pytest.mark.parametrize("fault", ["ledger.after_refer", "registry.mid_weights"])
async def test_weights_of_a_model_deleted_before_its_job_succeeded_are_not_kept(
    db: Database, objects: ObjectStore, make_registry: Make, train: Make, faults: Make, fault: str, is_cancelled: bool
) -> None:
    job = await train()
    registry = make_registry()
    await registry.look()
    await job.tell(VERIFIED, op_id="1/verify")
    faults(f"{fault}=raise*1")
    with pytest.raises(FailPointError):
        await registry.look()
    model = await only_model(db)
    assert (await advance(db, Kind.MODEL, model["_id"], f.ModelDeleted(), actor=ACTOR)).applied
    if is_cancelled:
        assert (await job.tell(f.JobCancelled())).applied
    await registry.look()
    over = [{"$set": {"intent_until": {"$subtract": ["$$NOW", 1]}}}]
    await db[ledger.COLLECTION].update_many({"intent_until": {"$type": "date"}}, over)
    await ledger.sweep(db, objects, older_than_s=-1)
    assert await db["files"].count_documents({"filename": {"$regex": "adapter"}, "phase": "processed"}) == 0
    assert [info.key async for info in objects.list(model["blob"]["key"])] == []


async def test_a_model_has_the_short_names_that_some_clients_call(
    db: Database, make_registry: Make, train: Make
) -> None:
    job = await train(suffix="mine")
    await make_registry().look()
    model = await only_model(db)
    assert (model["suffix"], model["aliases"]) == ("mine", ["ft:Tiny:mine", "ft:tiny:mine"])
    assert model["job"] == job.id


async def test_a_model_has_the_name_that_its_job_was_given(db: Database, make_registry: Make, train: Make) -> None:
    job = await train()
    await db["jobs"].update_one({"_id": job.id}, {"$set": {"model_name": "ft:Tiny:old-name::1234"}})
    await make_registry().look()
    assert (await only_model(db))["name"] == "ft:Tiny:old-name::1234"


async def test_the_lineage_says_where_a_model_comes_from(db: Database, make_registry: Make, train: Make) -> None:
    job = await train()
    await make_registry().look()
    lineage = (await only_model(db))["lineage"]
    assert (lineage["job"], lineage["attempt"], lineage["seed"]) == (job.id, 1, 7)
    assert lineage["base"] == {"name": "Tiny", "digest": "0" * 64, "revision": "a" * 64}
    assert lineage["files"] == [
        {"role": "training", "file_id": "file-training", "sha256": "0" * 64, "num_examples": 12}
    ]
    assert lineage["hyperparameters"]["lora_r"] == 8
    assert lineage["library_versions"] == {"torch": "2.13.0"}
    assert (lineage["trained_tokens"], lineage["train_loss"], lineage["valid_loss"]) == (600, 2.0, None)


async def test_the_metrics_are_a_file_of_the_job(
    db: Database, objects: ObjectStore, make_registry: Make, train: Make
) -> None:
    job = await train()
    await make_registry().look()
    file = await db["files"].find_one({"_id": (await job.doc())["staged"]["result_file_id"]})
    assert (file["purpose"], file["status"], file["filename"]) == ("fine-tune-results", "processed", "step_metrics.csv")
    assert (await objects.read(file["object_key"])).decode() == CSV


@pytest.mark.parametrize(
    "fault",
    [
        "registry.mid_copy=raise*1",
        "registry.after_model=raise*1",
        "registry.after_staged=raise*1",
        "registry.after_weights_files=raise*1",
        "registry.after_registered=raise*1",
        "journal.after_create=raise*2",
        "journal.after_advance=raise*2",
        "registry.*=raise:0.5*4",
    ],
)
async def test_a_registry_that_breaks_anywhere_comes_to_the_same_end(
    db: Database, make_registry: Make, train: Make, faults: Make, tmp_path: Any, fault: str
) -> None:
    job = await train()
    faults(fault, "seed", str(tmp_path / "faults.log"))
    for number in range(10):
        with contextlib.suppress(FailPointError):
            await finish(make_registry(f"registry-{number}"), job)
    assert (await job.doc())["status"] == "succeeded"
    assert (await only_model(db))["phase"] == "published"
    assert await said(db, "models") == ["ModelStaged", "ModelPublished"]
    assert await said(db, "files") == ["FileGenerated"] * 3
    tail = (await said(db, "jobs"))[-4:]
    assert tail == ["RunFinished", "ArtifactStaged", "ServingVerified", "ModelRegistered"]
    references = [row["references"] async for row in db[ledger.COLLECTION].find()]
    model_id = (await only_model(db))["_id"]
    stem = f"file/{model_id.replace('ftmodel', 'file')}"
    of_model = sorted([f"model/{model_id}", f"{stem}w0", f"{stem}w1"])
    assert sorted(sorted(names) for names in references) == sorted([[stem], of_model])


async def test_two_registries_at_once_make_one_model(db: Database, make_registry: Make, train: Make) -> None:
    jobs = [await train() for _ in range(3)]
    registries = [make_registry("registry-1"), make_registry("registry-2")]
    for _ in range(4):
        await asyncio.gather(*(registry.look() for registry in registries))
        for job in jobs:
            await job.tell(VERIFIED, op_id="1/verify")
    assert [(await job.doc())["status"] for job in jobs] == ["succeeded"] * 3
    assert sorted(await said(db, "models")) == ["ModelPublished"] * 3 + ["ModelStaged"] * 3
    assert (await said(db, "jobs")).count("ArtifactStaged") == 3


async def test_a_changed_byte_fails_the_job_and_publishes_nothing(
    db: Database, objects: ObjectStore, make_registry: Make, train: Make
) -> None:
    job = await train()
    key = (await job.doc())["finished"]["artifact"]["key"]
    await objects.put(key + "adapter_model.safetensors", b"v" * 3_000_000)
    await make_registry().look()
    doc = await job.doc()
    assert (doc["status"], doc["error"]["code"], doc["error"]["owner"]) == ("failed", "artifact_corrupt", "operator")
    assert "adapter_model.safetensors" in doc["error"]["message"]
    assert await db["models"].find_one() is None
    assert [row["references"] async for row in db[ledger.COLLECTION].find()] == [[]]


@pytest.mark.parametrize(("name", "content"), [("manifest.json", b"{}"), ("text.json", b"{} "), ("golden.json", None)])
async def test_a_damaged_artifact_fails_the_job(
    objects: ObjectStore, make_registry: Make, train: Make, name: str, content: bytes | None
) -> None:
    job = await train()
    key = (await job.doc())["finished"]["artifact"]["key"] + name
    await (objects.delete(key) if content is None else objects.put(key, content))
    await make_registry().look()
    error = (await job.doc())["error"]
    assert error["code"] == "artifact_corrupt"
    assert name in error["message"]


async def test_a_file_that_a_loader_could_run_fails_the_job(make_registry: Make, train: Make) -> None:
    job = await train(files={"adapter_config.json": b"{}", "modeling_evil.py": b"import os"})
    await make_registry().look()
    assert (await job.doc())["error"]["code"] == "artifact_corrupt"


async def test_a_model_that_no_engine_serves_is_published_untried(
    db: Database, make_registry: Make, train: Make, clock: Any
) -> None:
    job = await train()
    registry = make_registry()
    await registry.look()
    clock.now_s += 59
    await registry.look()
    assert (await job.doc())["phase"] == "staged"
    clock.now_s += 2
    await registry.look()
    assert (await job.doc())["status"] == "succeeded"
    assert "ServingSkipped" in await said(db, "jobs")


@pytest.mark.parametrize("how", ["bases", "resting"])
async def test_a_model_whose_base_is_served_waits_for_the_engine(
    db: Database, make_registry: Make, train: Make, clock: Any, how: str
) -> None:
    """Also for one that could not load the base a moment ago: it tries again, and knows when that was long enough."""
    fields = {"org": "system", "project": "system", "owner": "system", "slots": [], "bases": [], how: ["Tiny"]}
    joined = f.NodeJoined(role="inference", num_slots=0, device="cpu")
    await create(db, joined, "engine-1", fields, actor=Actor(room="inference"))
    job = await train()
    registry = make_registry()
    for _ in range(3):
        await registry.look()
        clock.now_s += 100
    assert (await job.doc())["phase"] == "staged"


@pytest.mark.parametrize("end", ["cancelled", "refused"])
async def test_the_model_of_a_job_that_did_not_succeed_goes(
    db: Database, objects: ObjectStore, make_registry: Make, train: Make, end: str
) -> None:
    job = await train()
    registry = make_registry()
    await registry.look()
    problem = f.Problem(code="serving_failed", message="no answer")
    await job.tell(f.JobCancelled() if end == "cancelled" else f.ServingRefused(problem=problem), op_id=end)
    await registry.look()
    model = await only_model(db)
    assert model["phase"] == "deleted"
    assert await ledger.sweep(db, objects, older_than_s=-1) == 1
    assert [info.key async for info in objects.list(model["blob"]["key"])] == []


async def test_a_job_that_is_cancelled_while_it_is_copied_leaves_nothing(
    db: Database, objects: ObjectStore, make_registry: Make, train: Make, faults: Make
) -> None:
    job = await train()
    faults("registry.mid_copy=raise")
    await make_registry().look()
    await job.tell(f.JobCancelled(), op_id="cancel")
    await make_registry().look()
    assert await db["models"].find_one() is None
    assert await ledger.sweep(db, objects, older_than_s=-1) == 1
    assert [info.key async for info in objects.list("org-default/proj-default/models/")] == []


async def test_a_restarted_job_makes_a_model_of_its_own(db: Database, make_registry: Make, train: Make) -> None:
    job = await train()
    registry = make_registry()
    await registry.look()
    await job.tell(f.JobCancelled(), op_id="cancel")
    await job.tell(f.JobRestarted(), op_id="restart")
    finished = f.RunFinished.model_validate((await job.doc())["finished"])
    await (await (await job.accepted()).placed(attempt=2)).started(attempt=2)
    await job.tell(finished, attempt=2, op_id="2/RunFinished")
    await finish(registry, job)
    models = {model["_id"]: model["phase"] async for model in db["models"].find()}
    assert sorted(models.values()) == ["deleted", "published"]
    assert {phase: model_id[-2:] for model_id, phase in models.items()}["published"] == "g2"
