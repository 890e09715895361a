"""Whole lives of jobs that a client made, told without validator, scheduler, trainer and registry."""

from builders.jobs import OWNED, JobStory, make_blob, make_step
from luthier_common.contract import events as f
from luthier_common.contract.envelope import Actor
from luthier_common.contract.ids import canonical_id
from luthier_common.contract.topics import Kind
from luthier_common.journal.advance import advance, create
from luthier_common.kit.mongo import Database

ACTOR = Actor(room="test")


async def read_file(db: Database, file_id: str, *, num_examples: int = 20, num_tokens: int = 400) -> None:
    """The file-validator's good verdict."""
    verdict = f.FileValidated(valid=True, num_examples=num_examples, num_tokens=num_tokens)
    await advance(db, Kind.FILE, canonical_id(file_id), verdict, actor=ACTOR)


async def queue(db: Database, job_id: str) -> JobStory:
    """The job's files are accepted; it waits."""
    return await JobStory(db, canonical_id(job_id)).accepted()


async def train(db: Database, job_id: str, *, num_steps: int = 3) -> JobStory:
    """The job runs: some steps are made, and a checkpoint is saved at the last of them."""
    story = await queue(db, job_id)
    await story.placed()
    await story.started()
    for step in range(1, num_steps + 1):
        await story.tell(make_step(step), attempt=1)
    seen = f.ValidationCompleted(step=num_steps, total_steps=6, full_valid_loss=0.7, full_valid_mean_token_accuracy=0.6)
    await story.tell(seen, attempt=1)
    metrics = {"train_loss": 0.5, "full_valid_loss": 0.7}
    await story.tell(f.CheckpointSaved(step=num_steps, attempt=1, blob=make_blob(), metrics=metrics), attempt=1)
    return story


async def succeed(db: Database, story: JobStory, name: str) -> None:
    """The running job ends well: its model is there under `name`."""
    finished = f.RunFinished(step=6, artifact=make_blob(), trained_tokens=300, train_loss=0.5)
    await story.tell(finished, attempt=1, op_id="1/RunFinished")
    model_id = f"ftmodel-{story.id[6:]}"
    staged = f.ModelStaged(name=name, job_id=story.id, base="tiny-base", blob=make_blob())
    owned = {key: (await story.doc()).get(key) for key in (*OWNED, "end_user")}
    fields = {
        **owned,
        "name": name,
        "job": story.id,
        "base": "tiny-base",
        "base_digest": "0" * 64,
        "blob": make_blob().model_dump(mode="json"),
    }
    await create(db, staged, model_id, fields, actor=ACTOR)
    await story.tell(f.ArtifactStaged(model_id=model_id, model_name=name, blob=make_blob()), op_id="staged")
    await story.tell(f.ServingSkipped(reason="test"), op_id="skipped")
    done = await story.tell(f.ModelRegistered(model_id=model_id, model_name=name), op_id="registered")
    assert done.applied, done.outcome
    await advance(db, Kind.MODEL, model_id, f.ModelPublished(name=name, job_id=story.id), actor=ACTOR)


async def fail(db: Database, job_id: str) -> None:
    """The validator finds that the job's file cannot be used."""
    problem = f.Problem(code="row_too_long", message="Too long.", param="training_file", line=3, owner="user")
    story = JobStory(db, canonical_id(job_id))
    assert (await story.tell(f.DataRejected(problem=problem, report_key=None))).applied
