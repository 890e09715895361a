"""Everything that any room does to one job, called as that room calls it, and what a `Model` says must come of it."""

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import SecretStr

from builders.jobs import ACTOR, OWNED, make_blob, make_resolved, make_spec, make_step
from builders.lifecycle_model import ANY, Model, judge_cancel, judge_delete, judge_pause, judge_resume
from luthier_api.domain import Principal
from luthier_api.errors import ApiError
from luthier_api.services.jobs import JobService
from luthier_api.services.waiting import Bases, Queue
from luthier_api.settings import ApiSettings
from luthier_api.store import Repository
from luthier_common.contract import events as f
from luthier_common.contract.lifecycle import HELD
from luthier_common.contract.reasons import FailureReason
from luthier_common.contract.topics import Kind
from luthier_common.journal.advance import Advanced, advance, create
from luthier_common.kit.mongo import Database, Doc
from luthier_file_validator.store import Store as ValidatorStore
from luthier_inference.store import InferenceStore
from luthier_registry.store import Store as RegistryStore
from luthier_scheduler.decide import Placement
from luthier_scheduler.store import Store as SchedulerStore
from luthier_trainer.domain import Claim, Verdict, claims_of, judge, run_failed
from luthier_trainer.store import Store as TrainerStore

FRESH = object()
"""A lease value that the model cannot know before the document is read."""
NUM_SLOTS, MAX_STRIKES = 2, 3
DEEDS = {
    "user": ("cancel", "pause", "resume", "restart", "delete"),
    "validator": ("read", "accept", "reject"),
    "scheduler": ("place", "lose", "wait", "fail", "exhaust"),
    "trainer": (
        *("renew", "start", "step", "steps", "validate", "save", "reject-checkpoint"),
        *("leave", "crash", "give-up", "run-paused", "finish"),
    ),
    "node": ("supervise",),
    "registry": ("stage", "skip", "register", "unregister", "verify", "refuse"),
}
"""Every deed by who does it; engines' verdicts stand with the registry."""
ROOM_OF = {name: room for room, names in DEEDS.items() for name in names}
Judgement = Callable[[Model], str]
PRINCIPAL = Principal("key-test", OWNED["org"], "Default", OWNED["project"], OWNED["owner"], frozenset())
_URLS: dict[str, Any] = {"mongo_url": "mongodb://unused", "kafka_url": "unused", "objects_url": "file:///unused"}
SETTINGS = ApiSettings(**_URLS, internal_token=SecretStr(""), max_queued_jobs=10**6)
"""Thousands of histories are one project's, and many leave their job waiting."""
_RESOLVED = make_resolved()
_PROBLEM = f.Problem(code=FailureReason.INTERNAL, message="it failed")


@dataclass(frozen=True)
class Deed:
    """One call of one room. `may_miss`: refused, it may have been for a reason that the model does not know."""

    name: str
    do: Callable[[bool], Awaitable[str]]
    """Told whether it is a repetition; answers with one word."""
    judge: Callable[[Model, bool], str]
    may_miss: bool = False


class Rooms:
    """The rooms around one job, which has a node of its own. Each acts on a document `seen` now or long ago."""

    def __init__(self, db: Database, job_id: str, dice: random.Random) -> None:
        self.db, self.job_id, self.node, self.dice = db, job_id, f"node-{job_id}", dice
        self.seen: list[Doc] = []
        self.api = JobService(Repository(db, PRINCIPAL, "req-test"), Bases(db), Queue(), SETTINGS)
        self.validator = ValidatorStore(db, None)  # type: ignore[arg-type]
        self.scheduler = SchedulerStore(db)
        self.trainer = TrainerStore(db, self.node, "home")
        self.registry = RegistryStore(db)
        self.inference = InferenceStore(db, "engine")

    async def create(self) -> Advanced:
        """The job, as an api makes it."""
        spec = make_spec()
        fields = {**OWNED, "spec": spec.model_dump(mode="json"), "last_step": 0, "strikes": 0, "wanted": "run"}
        return await create(self.db, f.JobCreated(spec=spec), self.job_id, fields, actor=ACTOR)

    async def join_node(self) -> None:
        slots = [{"index": n, "gpu": None, "holder": None} for n in range(NUM_SLOTS)]
        assert await self.trainer.join("cpu", slots) is None

    def deed(self, name: str) -> Deed | None:
        """This deed, on a document as somebody has seen it: mostly the last, at times an old one.

        None where the room would not do it with such a document.
        """
        seen = self.seen[-1] if self.dice.random() < 0.7 else self.dice.choice(self.seen)
        makers = {
            "user": self._of_users,
            "validator": self._of_validator,
            "scheduler": self._of_scheduler,
            "trainer": self._of_trainer,
            "node": self._of_node,
            "registry": self._of_registry,
        }
        return next((deed for deed in makers[ROOM_OF[name]](seen) if deed.name == name), None)

    def _of_users(self, _seen: Doc) -> list[Deed]:
        async def restart(_again: bool) -> str:
            done = await advance(self.db, Kind.JOB, self.job_id, f.JobRestarted(), actor=ACTOR, op_id=op_id)
            return str(done.outcome)

        op_id = f"restart/{self.dice.random()}"
        return [
            Deed("cancel", self._verb(lambda _again: self.api.cancel(self.job_id)), judge_cancel),
            Deed("pause", self._verb(lambda again: self.api.pause(self.job_id, is_retry=again)), judge_pause),
            Deed("resume", self._verb(lambda again: self.api.resume(self.job_id, is_retry=again)), judge_resume),
            Deed("delete", self._verb(lambda again: self.api.delete(self.job_id, is_retry=again)), judge_delete),
            Deed("restart", restart, lambda model, _: model.state(f.JobRestarted(), op_id=op_id)),
        ]

    @staticmethod
    def _verb(call: Callable[[bool], Awaitable[Doc]]) -> Callable[[bool], Awaitable[str]]:
        async def do(again: bool) -> str:
            try:
                await call(again)
            except ApiError:
                return "refused"
            return "done"

        return do

    def _of_validator(self, seen: Doc) -> list[Deed]:
        counts: dict[str, Any] = {"num_examples": 12, "num_tokens": 600}
        read = f.DatasetProcessed(
            file_id="file-training", role="training", num_trained_tokens=300, sha256="0" * 64, **counts
        )
        facts = {"read": read, "accept": f.DataAccepted(**counts), "reject": f.DataRejected(problem=_PROBLEM)}

        def deed(name: str, fact: Any) -> Deed:
            op_id = None if name == "read" else f"{seen['generation']}/{fact.type}"
            return self._stated(
                name,
                lambda: self.validator.state_of_job(seen, fact),
                lambda model: model.state(fact, op_id=op_id, match=_same(seen, "generation")),
            )

        return [deed(name, fact) for name, fact in facts.items()]

    def _of_scheduler(self, seen: Doc) -> list[Deed]:
        attempt, slot, reason = seen["attempt"] + 1, self.dice.randrange(NUM_SLOTS), self.dice.choice("xy")
        placement = Placement(self.job_id, attempt, self.node, (slot,))
        members = (f.Member(node=self.node, slots=(slot,)),)
        placed = f.JobPlaced(attempt=attempt, members=members, resolved=_RESOLVED, base_digest="0" * 64)
        lost = f.RunLost(reason=FailureReason.LEASE_EXPIRED, last_step=seen["last_step"])
        failed, waits = f.JobFailed(problem=_PROBLEM), f.QueueReasonChanged(reason=reason, message=reason)
        lease = {"lease": seen.get("lease")}

        async def place(_again: bool) -> str:
            return "placed" if await self.scheduler.place(placement, placed) else "refused"

        def judge_lost(model: Model) -> str:
            return model.state(lost, attempt=seen["attempt"], match=_same(seen, "lease"))

        def judge_exhausted(model: Model) -> str:
            return model.state(failed, match=lambda now: now.phase == "waiting" and now.strikes >= MAX_STRIKES)

        def judge_unplaceable(model: Model) -> str:
            return model.state(failed, match=_same(seen, "phase", "attempt", "generation"))

        def judge_wait(model: Model) -> str:
            return model.state(waits, op_id=ANY)

        told, job = self.scheduler.state_of_job, self.job_id
        deeds = [
            Deed("place", place, lambda m, _: "placed" if m.state(placed) == "applied" else "refused", may_miss=True),
            self._stated("lose", lambda: told(job, lost, attempt=seen["attempt"], match=lease), judge_lost),
            self._stated("wait", lambda: self.scheduler.tell_reason(job, waits), judge_wait),
        ]
        if seen["phase"] != "waiting":
            return deeds
        unplaceable = self._stated("fail", lambda: self.scheduler.fail_waiting(seen, _PROBLEM), judge_unplaceable)
        if seen["strikes"] < MAX_STRIKES:
            return [*deeds, unplaceable]
        exhaust = partial(self.scheduler.fail_exhausted, job, _PROBLEM, MAX_STRIKES)
        return [*deeds, unplaceable, self._stated("exhaust", exhaust, judge_exhausted)]

    def _of_trainer(self, seen: Doc) -> list[Deed]:
        claim, step = Claim(self.job_id, seen["attempt"], (0,), None), seen["last_step"] + self.dice.randrange(1, 3)
        saved = f.CheckpointSaved(step=seen["last_step"], attempt=claim.attempt, blob=make_blob())
        validated: dict[str, Any] = {"step": step, "total_steps": 6, "full_valid_loss": 1.0}
        finished: dict[str, Any] = {"artifact": make_blob(), "trained_tokens": 1, "train_loss": 1.0}
        crashed = run_failed(FailureReason.RUN_CRASHED)
        facts: dict[str, Sequence[Any]] = {
            "start": [f.RunStarted(total_steps=6, num_epochs=2, num_examples=12, device="cpu")],
            "step": [make_step(step)],
            "steps": [make_step(step), make_step(step + 1)],
            "validate": [f.ValidationCompleted(**validated, full_valid_mean_token_accuracy=0.5)],
            "save": [saved],
            "reject-checkpoint": [f.CheckpointRejected(step=seen["last_step"], problem="cut short")],
            "leave": [crashed.model_copy(update={"preempted": True})],
            "crash": [crashed],
            "give-up": [run_failed(FailureReason.ROW_TOO_LONG)],
            "run-paused": [f.RunPaused(step=seen["last_step"])],
            "finish": [f.RunFinished(step=seen["last_step"], **finished)],
        }
        named = {"start", "leave", "crash", "give-up", "run-paused", "finish", "reject-checkpoint"}

        def deed(name: str, facts: Sequence[Any]) -> Deed:
            op = facts[0].type if name in named else None
            op_id = None if op is None else f"{claim.attempt}/{op}"
            return self._stated(
                name,
                lambda: self.trainer.state(claim, facts, op_id=op),
                lambda model: model.state(facts, attempt=claim.attempt, op_id=op_id),
            )

        async def renew(_again: bool) -> str:
            return await self.trainer.renew_lease(self.job_id, claim.attempt) or "over"

        renewal = Deed("renew", renew, lambda model, _: model.renew(claim.attempt, FRESH))
        return [renewal, *(deed(name, listed) for name, listed in facts.items())]

    def _of_node(self, _seen: Doc) -> list[Deed]:
        async def look(_again: bool) -> str:
            await self.supervise(ttl_s=3600)
            return "looked"

        return [Deed("supervise", look, lambda _model, _again: "looked")]

    def _of_registry(self, seen: Doc) -> list[Deed]:
        names = {"model_id": "model-1", "model_name": "ft:tiny:default::1"}
        answered = f.ServingVerified(node="engine", num_golden_rows=1, num_answer_tokens=1, latency_s=0.1)
        stated: dict[str, f.JobFact] = {
            "stage": f.ArtifactStaged(**names, blob=make_blob()),
            "skip": f.ServingSkipped(reason="nobody serves it"),
            "register": f.ModelRegistered(**names),
        }
        if seen["phase"] in ("trained", "verified"):
            stated["unregister"] = f.JobFailed(problem=_PROBLEM)
        verdicts: dict[str, f.JobFact] = {"verify": answered, "refuse": f.ServingRefused(problem=_PROBLEM)}
        run = f"{seen['generation']}/{seen['attempt']}"

        def deed(name: str, fact: f.JobFact) -> Deed:
            same = _same(seen, "generation")
            return self._stated(
                name,
                lambda: self.registry.state_of_job(seen, fact),
                lambda model: model.state(fact, attempt=seen["attempt"], op_id=f"{run}/{fact.type}", match=same),
            )

        def verdict(name: str, fact: f.JobFact) -> Deed:
            same = _same(seen, "generation", "attempt")
            return self._stated(
                name,
                lambda: self.inference.state_verdict(seen, fact),
                lambda model: model.state(fact, op_id=f"{run}/serving", match=same),
            )

        return [deed(*one) for one in stated.items()] + [verdict(*one) for one in verdicts.items()]

    async def supervise(self, *, ttl_s: float) -> None:
        """Free what the node's supervisor would free."""
        slots, now = await self.trainer.read_slots() or ([], None)
        claims = claims_of(slots)
        jobs = await self.trainer.read_jobs([claim.job_id for claim in claims])
        for claim in claims:
            assert now is not None
            match judge(claim, jobs.get(claim.job_id), self.node, now, ttl_s, home=self.trainer.home):
                case Verdict.FREE:
                    await self.trainer.free(claim)
                case Verdict.WITHDRAW:
                    await self.trainer.withdraw(claim)

    async def misplaced(self, doc: Doc) -> list[str]:
        """Slots that are not as the job needs them: those of a placed run are its own."""
        if doc["phase"] not in HELD:
            return []
        slots, _ = await self.trainer.read_slots() or ([], None)
        (member,) = doc["members"]
        holders = [slot["holder"] for slot in slots if slot["index"] in member["slots"]]
        wanted = [(self.job_id, doc["attempt"])] * len(member["slots"])
        found = [(holder["job"], holder["attempt"]) if holder else None for holder in holders]
        return [] if found == wanted else [f"the run's slots are held by {found}"]

    @staticmethod
    def _stated(name: str, do: Callable[[], Awaitable[Advanced]], judged: Judgement) -> Deed:
        async def word(_again: bool) -> str:
            return str((await do()).outcome)

        return Deed(name, word, lambda model, _again: judged(model))


def _same(seen: Doc, *names: str) -> Callable[[Model], bool]:
    return lambda model: all(getattr(model, name) == seen.get(name) for name in names)
