"""The trial of a finished model before anybody sees it: the artifact's bytes, its golden rows' ids, one answer."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

from luthier_common.contract.events import JobFact, Problem, ServingRefused, ServingSkipped, ServingVerified
from luthier_common.contract.reasons import FailureReason
from luthier_common.kit.clock import Clock
from luthier_common.kit.errors import LuthierError, TransientError
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.leases import acquire, release
from luthier_common.kit.mongo import DRIVER_ERRORS, Doc
from luthier_common.kit.telemetry import span_of
from luthier_inference.artifacts import ArtifactCache, ArtifactCorruptError
from luthier_inference.chat import AdapterRef
from luthier_inference.domain import BadAdapterError, BrokenWeightsError, FilesMissingError, Generation
from luthier_inference.engines import LoadedBase
from luthier_inference.serving import Prepared, Serving, greedy
from luthier_inference.settings import InferenceSettings
from luthier_inference.store import InferenceStore, names_of
from luthier_text import IGNORED_LABEL, TextBundle, TextError

logger = logging.getLogger(__name__)
GOLDEN_FILE = "golden.json"
TRAINING_FILE = "training.json"
_ANSWER_TOKENS = 16
_MAX_FILE_BYTES = 16 * 1024 * 1024


class _RefusedError(Exception):
    """The model failed its trial: what is wrong lies in the model, and no other engine would find it otherwise."""

    def __init__(self, reason: FailureReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Verifier:
    """Tries staged models one after the other; which node tries one is settled by a lease."""

    def __init__(
        self,
        store: InferenceStore,
        serving: Serving,
        artifacts: ArtifactCache,
        settings: InferenceSettings,
        clock: Clock,
    ) -> None:
        self._store = store
        self._serving = serving
        self._artifacts = artifacts
        self._settings = settings
        self._clock = clock
        self._waits_since_s: dict[tuple[str, int], float] = {}

    async def look(self) -> None:
        """Try every staged model whose base this node serves, unless the room stops.

        Where the base rests here, a node that has it ready tries the model, or says that it cannot.
        """
        served = await self._serving.list_served()
        ready = {name for base in await self._serving.list_ready() for name in names_of(base)}
        jobs = await self._store.list_staged({name for base in served for name in names_of(base)})
        waiting = {_attempt_of(job) for job in jobs}
        self._waits_since_s = {key: since_s for key, since_s in self._waits_since_s.items() if key in waiting}
        for job in jobs:
            if self._serving.is_draining:
                return
            asked = job["spec"]["model"]
            if asked in ready:
                await self._try_or_wait(job)
            elif not await self._store.is_ready_elsewhere([base["_id"] for base in served if asked in names_of(base)]):
                await self._wait(job, "base_not_ready")

    async def _try_or_wait(self, job: Doc) -> None:
        """One model that cannot be tried now keeps neither the others waiting nor its job for ever."""
        try:
            await self._try_job(job)
        except DRIVER_ERRORS:
            raise
        except Exception as error:
            code = getattr(error, "code", type(error).__name__)
            is_unforeseen = not isinstance(error, LuthierError)
            told = {"job_id": job["_id"], "code": code}
            logger.warning("a finished model must wait", extra=told, exc_info=is_unforeseen)
            await self._wait(job, code)

    async def _wait(self, job: Doc, code: str) -> None:
        """Until it was long enough, and no other node is trying it."""
        now_s, patience_s = self._clock.monotonic_s(), self._settings.verify_patience_s
        if now_s - self._waits_since_s.setdefault(_attempt_of(job), now_s) < patience_s:
            return
        async with self._claimed(f"verify/{job['_id']}") as is_ours:
            if is_ours:
                reason = f"no engine could try it for {patience_s:g} s, last for {code}"
                await self._store.state_verdict(job, ServingSkipped(reason=reason))

    async def _try_job(self, job: Doc) -> None:
        async with self._claimed(f"verify/{job['_id']}") as is_ours:
            if not is_ours:
                return
            trace = job.get("run_trace") or job.get("trace")
            with span_of("inference.verify", trace, {"job.id": job["_id"], "attempt": job["attempt"]}):
                await self._judge_and_state(job)

    async def _judge_and_state(self, job: Doc) -> None:
        verdict = await self._judge(job)
        await failpoint("inference.before_verdict")
        done = await self._store.state_verdict(job, verdict)
        await failpoint("inference.after_verdict")
        logger.info(
            "a finished model was tried",
            extra={"job_id": job["_id"], "fact": verdict.type, "outcome": done.outcome},
        )

    @asynccontextmanager
    async def _claimed(self, name: str) -> AsyncIterator[bool]:
        ttl_s = self._settings.lease_ttl_s
        lease = await acquire(self._store.db, name, self._store.node, ttl_s)
        if lease is None:
            yield False
            return

        async def renew() -> None:
            while True:
                await asyncio.sleep(ttl_s / 3)
                with suppress(TransientError, *DRIVER_ERRORS):
                    await acquire(self._store.db, name, self._store.node, ttl_s)

        renewal = asyncio.create_task(renew())
        try:
            yield True
        finally:
            renewal.cancel()
            await release(self._store.db, lease)

    async def _judge(self, job: Doc) -> JobFact:
        """The verdict. What is raised says nothing about the model: it is tried again."""
        try:
            return await self._try_model(job)
        except _RefusedError as error:
            return _refuse(error.reason, str(error))
        except (ArtifactCorruptError, FilesMissingError) as error:
            return _refuse(FailureReason.ARTIFACT_CORRUPT, str(error))
        except BadAdapterError as error:
            return _refuse(FailureReason.SERVING_FAILED, str(error))

    async def _try_model(self, job: Doc) -> ServingVerified:
        staged = job["staged"]
        adapter = AdapterRef(
            model_id=staged["model_id"],
            key=staged["blob"]["key"],
            manifest_sha256=staged["blob"]["manifest_sha256"],
            base_digest=job["base_digest"],
        )
        async with self._serving.base(job["spec"]["model"], job["base_digest"]) as base:
            golden = await self._artifacts.read(adapter, GOLDEN_FILE, _MAX_FILE_BYTES)
            training = await self._artifacts.read(adapter, TRAINING_FILE, _MAX_FILE_BYTES)
            num_rows, ids = await asyncio.to_thread(_check_golden, base.engine.text, golden, training)
            await failpoint("inference.before_adapter")
            await self._artifacts.fetch(adapter)  # takes as long as it takes
            async with asyncio.timeout(self._settings.verify_answer_s):
                await self._serving.load_adapter(base, adapter)
                await failpoint("inference.after_adapter")
                started_at_s = time.monotonic()
                num_tokens = await self._answer_soundly(base, adapter, ids)
        return ServingVerified(
            node=self._store.node,
            num_golden_rows=num_rows,
            num_answer_tokens=num_tokens,
            latency_s=round(time.monotonic() - started_at_s, 3),
        )

    async def _answer_soundly(self, base: LoadedBase, adapter: AdapterRef, ids: tuple[int, ...]) -> int:
        """How many tokens the tuned model says to this prompt.

        Raises `BrokenWeightsError` when its base computes no numbers either: that is the fault of this node.
        """
        try:
            num_tokens = await self._answer_once(base, adapter, ids)
        except BrokenWeightsError as error:
            await self._answer_once(base, None, ids)
            raise _RefusedError(FailureReason.SERVING_FAILED, str(error)) from error
        if not num_tokens:
            raise _RefusedError(FailureReason.SERVING_FAILED, "the model gave no answer")
        return num_tokens

    async def _answer_once(self, base: LoadedBase, adapter: AdapterRef | None, ids: tuple[int, ...]) -> int:
        name = adapter.name if adapter else None
        prepared = Prepared(base, Generation(ids, name, greedy(_ANSWER_TOKENS)), adapter)
        async with aclosing(self._serving.answer(prepared)) as deltas:
            return sum([delta.num_tokens async for delta in deltas])


def _attempt_of(job: Doc) -> tuple[str, int]:
    return job["_id"], job["attempt"]


def _check_golden(text: TextBundle, golden: bytes | None, training: bytes | None) -> tuple[int, tuple[int, ...]]:
    """How many golden rows give the same ids and labels here as in training, and the prompt of the first."""
    if golden is None:
        raise _RefusedError(FailureReason.ARTIFACT_CORRUPT, f"the artifact has no {GOLDEN_FILE}")
    try:
        rows = json.loads(golden)
        differences = ["there is no golden row"]
        if rows:
            # A room of another version makes rows in another way, and rightly so while a job crosses an upgrade.
            is_alike = _mask_mode(training) in (None, text.facts["mask_mode"])
            differences = text.check_golden(rows) if is_alike else []
        if differences:
            raise _RefusedError(FailureReason.TEMPLATE_MISMATCH, "; ".join(differences[:3]))
        return len(rows), _prompt_ids(text, rows[0])
    except TextError as error:
        raise _RefusedError(FailureReason.TEMPLATE_MISMATCH, error.message) from error
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        raise _RefusedError(
            FailureReason.ARTIFACT_CORRUPT, f"{GOLDEN_FILE} or {TRAINING_FILE} cannot be read"
        ) from error


def _mask_mode(training: bytes | None) -> str | None:
    """How the trainer made ids and labels of rows; None where the artifact does not say."""
    said = json.loads(training) if training is not None else {}
    return str(said["text"]["mask_mode"]) if "text" in said else None


def _prompt_ids(text: TextBundle, golden: dict[str, Any]) -> tuple[int, ...]:
    """Ids of a golden row up to what the model is to say, as many of the last as leave room for an answer."""
    if "max_length" in golden:
        # The whole prompt of a row that was cut may be longer than the model can see.
        first = next(at for at, label in enumerate(golden["labels"]) if label != IGNORED_LABEL)
        ids = golden["input_ids"][: max(1, first)]
    else:
        messages = golden["row"]["messages"]
        last = max(at for at, message in enumerate(messages) if message["role"] == "assistant")
        ids = text.prompt_ids(messages[:last] or messages, golden["row"].get("tools"))
    return tuple(ids[-max(1, text.context_length - _ANSWER_TOKENS) :])


def _refuse(reason: FailureReason, detail: str) -> ServingRefused:
    message = f"{reason.sentence} ({detail[:300]})"
    return ServingRefused(problem=Problem(code=reason, message=message, owner="operator", retryable=False))
