"""What follows from where jobs stand: unserved bases are skipped, verified jobs succeed, models follow their jobs."""

import logging

from luthier_common.contract.events import JobFailed, ModelRegistered, Problem, ServingSkipped
from luthier_common.contract.reasons import FailureReason
from luthier_common.journal.advance import Outcome
from luthier_common.kit.clock import Clock
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import Doc
from luthier_common.kit.telemetry import span_of
from luthier_registry.domain import Fate, fate_of, trace_of
from luthier_registry.store import Store

log = logging.getLogger(__name__)


class Settler:
    def __init__(self, store: Store, clock: Clock, serving_wait_s: float) -> None:
        self._store = store
        self._clock = clock
        self._serving_wait_s = serving_wait_s
        self._unserved_since_s: dict[tuple[str, int], float] = {}

    async def look(self) -> None:
        """Raises a driver error when the database is away: what was watched until then counts no more."""
        try:
            await self._skip_unserved()
            await self._register_verified()
            await self._follow_jobs()
            await self._store.release_deleted_models()
            await self._store.release_abandoned()
        except Exception:
            self._unserved_since_s.clear()
            raise

    async def _skip_unserved(self) -> None:
        jobs = await self._store.list_jobs("staged")
        served = await self._store.served_names() if jobs else set()
        now_s = self._clock.monotonic_s()
        unserved = {(job["_id"], job["attempt"]): job for job in jobs if not served & await self._names_of_base(job)}
        self._unserved_since_s = {key: self._unserved_since_s.get(key, now_s) for key in unserved}
        for key, since_s in self._unserved_since_s.items():
            if now_s - since_s >= self._serving_wait_s:
                reason = f"no engine has served the base model for {self._serving_wait_s:g} s"
                await self._store.state_of_job(unserved[key], ServingSkipped(reason=reason))

    async def _names_of_base(self, job: Doc) -> set[str]:
        asked = job["spec"]["model"]
        base = await self._store.read_base(asked)
        return {asked, base["_id"], *base["aliases"]} if base else {asked}

    async def _register_verified(self) -> None:
        for job in await self._store.list_jobs("verified"):
            with span_of("registry.register", trace_of(job), {"job.id": job["_id"], "attempt": job["attempt"]}):
                await self._register(job)

    async def _register(self, job: Doc) -> None:
        staged = job["staged"]
        model = await self._store.read_model(staged["model_id"])
        if model is None or model["phase"] == "deleted":
            message = "The model was deleted before its job had succeeded."
            problem = Problem(code=FailureReason.INTERNAL, message=message)
            await self._store.state_of_job(job, JobFailed(problem=problem))
            return
        weights = await self._store.make_weights_files(model)
        await failpoint("registry.after_weights_files")
        fact = ModelRegistered(model_id=staged["model_id"], model_name=staged["model_name"], weights_files=weights)
        done = await self._store.state_of_job(job, fact)
        if done.outcome is Outcome.ILLEGAL:
            await self._store.drop_weights_files(model)
        await failpoint("registry.after_registered")
        log.info("registered", extra={"job_id": job["_id"], "model_id": fact.model_id, "outcome": done.outcome})

    async def _follow_jobs(self) -> None:
        for model in await self._store.list_models("staged"):
            fate = fate_of(model, await self._store.read_job(model["job"]))
            if fate is Fate.PUBLISH:
                await failpoint("registry.before_publish")
                await self._store.publish_model(model)
            elif fate is Fate.DELETE:
                await self._store.drop_weights_files(model)
                await failpoint("registry.before_model_deleted")
                await self._store.delete_model(model["_id"])
