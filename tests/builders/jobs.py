"""Builders of jobs: a story told fact by fact, with sensible defaults."""

from datetime import UTC, datetime
from typing import Any

from builders.waiting import until
from luthier_common.contract import events as f
from luthier_common.contract.envelope import Actor
from luthier_common.contract.ids import JOB_PREFIX, new_id
from luthier_common.contract.spec import JobSpec, ResolvedHyperparameters
from luthier_common.contract.topics import Kind
from luthier_common.journal.advance import Advanced, advance, create
from luthier_common.kit.mongo import Database, Doc

ACTOR = Actor(room="test")
OWNED = {"org": "org-default", "project": "proj-default", "owner": "key-test"}


def make_resolved(**changes: Any) -> ResolvedHyperparameters:
    values: dict[str, Any] = {
        "n_epochs": 2,
        "batch_size": 4,
        "learning_rate": 2e-4,
        "learning_rate_multiplier": 1.0,
        "base_learning_rate": 2e-4,
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "lora": True,
        "lora_r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "context_length": 256,
        "packing": False,
        "total_steps": 6,
        "seed": 7,
    }
    return ResolvedHyperparameters(**(values | changes))


def make_spec(**changes: Any) -> JobSpec:
    values: dict[str, Any] = {"model": "tiny", "training_file": "file-training", "seed": 7}
    return JobSpec(**(values | changes))


class JobStory:
    """One job, moved by the facts a test names."""

    def __init__(self, db: Database, job_id: str) -> None:
        self.db = db
        self.id = job_id

    @classmethod
    async def created(cls, db: Database, *, spec: JobSpec | None = None, **fields: Any) -> "JobStory":
        story = cls(db, new_id(JOB_PREFIX, datetime.now(UTC)))
        spec = spec or make_spec()
        document = {
            **OWNED,
            "spec": spec.model_dump(mode="json"),
            "metadata": None,
            "last_step": 0,
            "strikes": 0,
            "wanted": "run",
            **fields,
        }
        await create(db, f.JobCreated(spec=spec), story.id, document, actor=ACTOR)
        return story

    async def tell(self, *facts: f.Fact, attempt: int | None = None, op_id: str | None = None, **kw: Any) -> Advanced:
        return await advance(self.db, Kind.JOB, self.id, facts, actor=ACTOR, attempt=attempt, op_id=op_id, **kw)

    async def doc(self) -> Doc:
        doc = await self.db["jobs"].find_one({"_id": self.id})
        assert doc is not None
        return doc

    async def reach(self, phase: str, within_s: float = 60.0) -> Doc:
        """The document, once others have moved the job into this phase."""

        async def seen() -> Doc | None:
            doc = await self.doc()
            return doc if doc["phase"] == phase else None

        return await until(seen, within_s=within_s, what=phase)

    async def accepted(self, *, num_examples: int = 12, **fields: Any) -> "JobStory":
        await self.tell(
            f.DatasetProcessed(
                file_id="file-training",
                role="training",
                num_examples=num_examples,
                num_tokens=600,
                num_trained_tokens=300,
                sha256="0" * 64,
            )
        )
        fact = f.DataAccepted(num_examples=num_examples, num_tokens=600)
        assert (await self.tell(fact, op_id=f"{(await self.doc())['generation']}/accept")).applied
        return self

    async def placed(self, attempt: int = 1, node: str = "node-1", slot: int = 0) -> "JobStory":
        done = await self.tell(
            f.JobPlaced(
                attempt=attempt,
                members=(f.Member(node=node, slots=(slot,)),),
                resolved=make_resolved(),
                base_digest="0" * 64,
            )
        )
        assert done.applied, done.outcome
        return self

    async def started(self, attempt: int = 1) -> "JobStory":
        fact = f.RunStarted(total_steps=6, num_epochs=2, num_examples=12, device="cpu")
        assert (await self.tell(fact, attempt=attempt, op_id=f"{attempt}/RunStarted")).applied
        return self

    async def in_training(self) -> "JobStory":
        await self.accepted()
        await self.placed()
        return await self.started()


def make_step(step: int, *, total_steps: int = 6) -> f.StepCompleted:
    return f.StepCompleted(
        step=step,
        total_steps=total_steps,
        epoch=step / 3,
        train_loss=2.0 / step,
        train_mean_token_accuracy=0.5,
        learning_rate=1e-4,
        trained_tokens=step * 50,
        step_time_s=0.1,
    )


def make_blob(key: str = "org-default/proj-default/jobs/x/a1/step-3/") -> f.Blob:
    return f.Blob(key=key, manifest_sha256="0" * 64, bytes=10)
