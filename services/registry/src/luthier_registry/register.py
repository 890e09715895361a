"""From `trained` to `staged`: the artifact is verified, copied to its permanent place and becomes a model document."""

import hashlib
import logging
from collections.abc import AsyncIterator

from luthier_common.contract.events import (
    ArtifactStaged,
    Blob,
    FileGenerated,
    JobFailed,
    ModelStaged,
    Problem,
    RunFinished,
)
from luthier_common.contract.ids import model_id_of, model_name, result_file_id_of
from luthier_common.contract.reasons import FailureReason
from luthier_common.kit.clock import Clock
from luthier_common.kit.errors import TransientError
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import DRIVER_ERRORS, Doc
from luthier_common.kit.objects import ObjectMissingError, ObjectStore
from luthier_common.kit.rests import Rests
from luthier_common.kit.telemetry import span_of
from luthier_registry.claims import Claims
from luthier_registry.domain import (
    MANIFEST_FILE,
    RESULT_FILENAME,
    RESULT_PURPOSE,
    ArtifactCorruptError,
    ArtifactFile,
    ArtifactManifest,
    lineage_of,
    read_artifact_manifest,
    short_names,
    trace_of,
    weights_files_of,
)
from luthier_registry.results import StepTable
from luthier_registry.store import Store

log = logging.getLogger(__name__)
MAX_MANIFEST_BYTES = 1024 * 1024
FIRST_REST_S, MAX_REST_S = 2.0, 120.0
"""A copy that fails has written much for nothing: it is not begun again and again at once."""


class Registrar:
    """Every step may be repeated: ids and keys follow from the job, and equal bytes are written to equal places."""

    def __init__(self, store: Store, objects: ObjectStore, claims: Claims, clock: Clock) -> None:
        self._store = store
        self._objects = objects
        self._claims = claims
        self._clock = clock
        self._rests = Rests[str](clock, first_s=FIRST_REST_S, most_s=MAX_REST_S)

    async def look(self) -> None:
        """Stage the model of every job that is trained. One whose model cannot be staged rests; the others go on."""
        for job in await self._store.list_jobs("trained"):
            if self._rests.is_resting(job["_id"]):
                continue
            try:
                await self._take(job["_id"])
                self._rests.end(job["_id"])
            except DRIVER_ERRORS:
                raise  # the database is away: for all of them
            except TransientError as error:
                told = {"job_id": job["_id"], "code": error.code, "rest_s": self._rests.begin(job["_id"])}
                log.warning("a trained job must wait", extra=told)
            except Exception:
                # A full disk, a store that refuses, a job that cannot be read: the others must not wait for it.
                told = {"job_id": job["_id"], "rest_s": self._rests.begin(job["_id"])}
                log.exception("the job cannot be registered", extra=told)

    async def _take(self, job_id: str) -> None:
        async with self._claims.hold(f"register/{job_id}") as is_ours:
            job = await self._store.read_job(job_id) if is_ours else None
            if job is None or job["phase"] != "trained":
                return
            with span_of("registry.stage", trace_of(job), {"job.id": job_id, "attempt": job["attempt"]}):
                await self._stage_and_state(job)

    async def _stage_and_state(self, job: Doc) -> None:
        try:
            fact = await self._stage(job)
        except (ArtifactCorruptError, ObjectMissingError) as error:
            await self._fail(job, error)
            return
        done = await self._store.state_of_job(job, fact)
        await failpoint("registry.after_staged")
        await self._store.release(f"registering/{job['_id']}")
        log.info("staged", extra={"job_id": job["_id"], "model_id": fact.model_id, "outcome": done.outcome})

    async def _stage(self, job: Doc) -> ArtifactStaged:
        finished = RunFinished.model_validate(job["finished"])
        base = await self._store.read_base(job["spec"]["model"])
        model_id = model_id_of(job["_id"], job["generation"])
        org_name = await self._store.org_name(job["org"])
        suffix = job["spec"].get("suffix")
        base_name = base["_id"] if base else job["spec"]["model"]
        name = model_name(base_name, org_name, suffix, model_id)
        if job["generation"] == 1:
            name = job.get("model_name") or name
        blob, manifest = await self._copy(job, finished.artifact, f"{job['org']}/{job['project']}/models/{model_id}/")
        result_file_id = await self._make_result_file(job, finished)
        fact = ModelStaged(name=name, job_id=job["_id"], base=base_name, blob=blob)
        fields = _owned(job) | {
            "name": name,
            "job": job["_id"],
            "base": base_name,
            "suffix": suffix,
            "aliases": short_names(base, base_name, suffix),
            "base_digest": job["base_digest"],
            "blob": blob.model_dump(mode="json"),
            "files": [file.model_dump(mode="json") for file in manifest.files],
            "weights_files": weights_files_of(model_id, manifest.files),
            "lineage": lineage_of(job, base, finished, self._clock.now()),
            "released": False,
        }
        # Referred to first: a model or file that is there is never without its bytes, whatever becomes of the job.
        await self._store.refer(blob.key, f"model/{model_id}")
        await failpoint("registry.mid_model")
        await self._store.create_model(model_id, fact, fields)
        await failpoint("registry.after_model")
        return ArtifactStaged(model_id=model_id, model_name=name, blob=blob, result_file_id=result_file_id)

    async def _copy(self, job: Doc, artifact: Blob, target: str) -> tuple[Blob, ArtifactManifest]:
        """Copy an artifact, verifying every byte on the way; its manifest comes last."""
        if not artifact.key.startswith(f"{job['org']}/{job['project']}/jobs/{job['_id']}/"):
            raise ArtifactCorruptError("the artifact does not lie below its job")
        try:
            content = await self._objects.read(artifact.key + MANIFEST_FILE, limit_bytes=MAX_MANIFEST_BYTES)
        except ValueError as error:
            raise ArtifactCorruptError(f"{MANIFEST_FILE} is too large or badly placed") from error
        if hashlib.sha256(content).hexdigest() != artifact.manifest_sha256:
            raise ArtifactCorruptError(f"{MANIFEST_FILE} has another sha256 than the run said")
        manifest = read_artifact_manifest(content)
        await self._record(job, target, f"registering/{job['_id']}", artifact.manifest_sha256, artifact.bytes)
        for file in manifest.files:
            await self._objects.put(target + file.name, self._verified(artifact.key + file.name, file))
            await failpoint("registry.mid_copy")
        await self._objects.put(target + MANIFEST_FILE, content)
        await failpoint("registry.after_copy")
        return Blob(key=target, manifest_sha256=artifact.manifest_sha256, bytes=artifact.bytes), manifest

    async def _verified(self, key: str, file: ArtifactFile) -> AsyncIterator[bytes]:
        """The file's bytes; ends in ArtifactCorruptError, so that nothing is written, when they are not as named."""
        digest, num_bytes = hashlib.sha256(), 0
        async for chunk in self._objects.get(key, end=file.bytes + 1):
            digest.update(chunk)
            num_bytes += len(chunk)
            yield chunk
        if num_bytes != file.bytes or digest.hexdigest() != file.sha256:
            raise ArtifactCorruptError(f"{file.name} has other bytes than {MANIFEST_FILE} says")

    async def _make_result_file(self, job: Doc, finished: RunFinished) -> str | None:
        """The metrics as a file of the job; None when the run left none. A model is never lost for its metrics."""
        table = await self._read_metrics(job["_id"], finished.metrics_key)
        if table is None:
            return None
        content = table.csv()
        file_id = result_file_id_of(job["_id"], job["generation"])
        key = f"{job['org']}/{job['project']}/files/{file_id}"
        sha256 = hashlib.sha256(content).hexdigest()
        await self._record(job, key, f"registering/{job['_id']}", sha256, len(content))
        await self._objects.put(key, content)
        await failpoint("registry.after_result")
        fact = FileGenerated(
            filename=RESULT_FILENAME, bytes=len(content), sha256=sha256, purpose=RESULT_PURPOSE, object_key=key,
            job_id=job["_id"],
        )  # fmt: skip
        await self._store.refer(key, f"file/{file_id}")
        await self._store.create_file(file_id, fact, _owned(job))
        await failpoint("registry.after_result_file")
        return file_id

    async def _read_metrics(self, job_id: str, key: str | None) -> StepTable | None:
        if key is None:
            return None
        table, rest = StepTable(), b""
        try:
            async for chunk in self._objects.get(key):
                *lines, rest = (rest + chunk).split(b"\n")
                table.add(lines)
        except ObjectMissingError:
            log.warning("the run's metrics are missing", extra={"job_id": job_id})
            return None
        table.add([rest])
        if table.num_unreadable:
            log.warning("metric lines were skipped", extra={"job_id": job_id, "lines": table.num_unreadable})
        return table

    async def _record(self, job: Doc, key: str, reference: str, sha256: str, num_bytes: int) -> None:
        await self._store.record(job, key, reference, sha256=sha256, num_bytes=num_bytes)

    async def _fail(self, job: Doc, error: Exception) -> None:
        reason = FailureReason.ARTIFACT_CORRUPT
        missing = isinstance(error, ObjectMissingError)
        detail = f"{str(error).rpartition('/')[2]} is missing" if missing else str(error)
        problem = Problem(code=reason, message=f"{reason.sentence} ({detail})", owner="operator")
        done = await self._store.state_of_job(job, JobFailed(problem=problem))
        await self._store.release(f"registering/{job['_id']}")
        log.error("the artifact is corrupt", extra={"job_id": job["_id"], "outcome": done.outcome, "detail": detail})


def _owned(job: Doc) -> Doc:
    return {name: job[name] for name in ("org", "project", "owner")} | {"end_user": job.get("end_user")}
