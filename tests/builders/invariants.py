"""The invariants of the spine, held against MongoDB, the topics and the objects. Nothing said: nothing is broken.

I1 an acknowledged create is exactly one job; I2 events are 1..seq; I3 one terminal fact per generation, and it is last;
I4 the status is what the facts lead to; I5 no fact of an old attempt; I6 a slot is one attempt's; I7 visible
checkpoints are whole; I8 succeeded means all steps and one model; I11 nothing waits; I12 nothing is left behind.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from openai import APIError, AsyncOpenAI, NotFoundError
from openai.types.fine_tuning import FineTuningJob

from builders.histories import broken_history
from builders.leftovers import broken_home, broken_objects, broken_slots
from builders.topic_records import Told, out_of_order
from luthier_api.domain import View
from luthier_api.wire.events import render
from luthier_common.contract.events import DELETED
from luthier_common.contract.lifecycle import JOB
from luthier_common.contract.topics import COLLECTIONS, Kind
from luthier_common.journal.rows import EVENTS, value_of
from luthier_common.kit import ledger
from luthier_common.kit.mongo import Database, Doc
from luthier_common.kit.objects import ObjectMissingError, ObjectStore

MANIFEST = "manifest.json"
DEED = "deed"
"""A client may put this into a job's metadata, one value for one create: two jobs with one value are a double."""
ASKED_AT_ONCE = 20


async def broken_invariants(
    db: Database,
    *,
    events_of_topic: Sequence[Told] | None = None,
    objects: ObjectStore | None = None,
    api: AsyncOpenAI | None = None,
    home: Path | None = None,
    acknowledged: Collection[str] = (),
    all_ended: bool = False,
    is_log_whole: bool = False,
) -> list[str]:
    """A sentence for each thing that is not as promised. What is not given is not looked at.

    `acknowledged` are the jobs that a client was told of; with `all_ended` each must have ended. `home` is that of an
    embedded stack whose sweepers have run. With `is_log_whole` the broker has never lost anything.
    """
    jobs = {job["_id"]: job async for job in db["jobs"].find({})}
    broken = [sentence async for sentence in _histories(db)]
    broken += _acknowledged(jobs, acknowledged, all_ended)
    broken += await broken_slots(db, jobs)
    broken += await _models(db, jobs)
    if events_of_topic is not None:
        broken += await _told_otherwise(db, events_of_topic)
        broken += out_of_order(events_of_topic) if is_log_whole else []
    if objects is not None:
        broken += [sentence async for sentence in _blobs(db, objects, jobs)]
        broken += await broken_objects(db, objects, jobs)
    if home is not None:
        broken += broken_home(home, jobs)
    if api is not None:
        deleted = {model["name"] async for model in db["models"].find({"phase": "deleted"}, {"name": 1})}
        broken += await _seen(api, db, jobs, acknowledged, deleted)
    return broken


async def _histories(db: Database) -> AsyncIterator[str]:
    for kind, name in COLLECTIONS.items():
        things = {thing["_id"]: thing async for thing in db[name].find({})}
        rows = await db[EVENTS].find({"kind": str(kind)}).sort([("thing", 1), ("seq", 1)]).to_list(None)
        told = {thing: list(group) for thing, group in groupby(rows, key=lambda row: row["thing"])}
        for thing_id, thing in things.items():
            for sentence in broken_history(kind, thing, told.get(thing_id, [])):
                yield sentence
        for thing_id in told.keys() - things.keys():
            yield f"I2 {kind} {thing_id}: {len(told[thing_id])} events of a thing that does not exist"


def _acknowledged(jobs: Mapping[str, Doc], acknowledged: Collection[str], all_ended: bool) -> Iterator[str]:
    for job_id in acknowledged:
        job = jobs.get(job_id)
        if job is None:
            yield f"I1 job {job_id}: a client was told of it, and it is not there"
        elif all_ended and not JOB.is_final(job["phase"]):
            yield f"I3 job {job_id}: it has not ended, it is {job['phase']}"
    deeds: dict[str, list[str]] = defaultdict(list)
    for job in jobs.values():
        for pair in job.get("metadata") or ():
            if pair["k"] == DEED:
                deeds[pair["v"]].append(job["_id"])
    for deed, made in deeds.items():
        if len(made) > 1:
            yield f"I1 one create ({deed}) made {len(made)} jobs: {', '.join(sorted(made))}"


async def _models(db: Database, jobs: Mapping[str, Doc]) -> list[str]:
    broken: list[str] = []
    models: dict[str, list[Doc]] = defaultdict(list)
    async for model in db["models"].find({}):
        models[model["job"]].append(model)
        job = jobs.get(model["job"])
        if model["phase"] == "published" and (job is None or job["phase"] != "succeeded"):
            broken.append(
                f"I8 model {model['_id']}: published though its job is {job['phase'] if job else 'not there'}"
            )
        elif model["phase"] == "staged" and (job is None or JOB.is_final(job["phase"])):
            broken.append(
                f"I8 model {model['_id']}: still staged though its job is {job['phase'] if job else 'not there'}"
            )
    registered = Counter(
        [(row["thing"], row["generation"]) async for row in db[EVENTS].find({"type": "ModelRegistered"})]
    )
    for job in jobs.values():
        if job["phase"] == "succeeded":
            times = registered[(job["_id"], job["generation"])]
            broken += _unsound_success(job, models[job["_id"]], times)
    return broken


def _unsound_success(job: Doc, models: Sequence[Doc], times: int) -> Iterator[str]:
    name = f"job {job['_id']}"
    if times != 1:
        yield f"I8 {name}: it succeeded and its model was registered {times} times"
    own = [model for model in models if model["_id"] == job["staged"]["model_id"]]
    if len(own) != 1 or own[0]["name"] != job["fine_tuned_model"]:
        yield f"I8 {name}: it succeeded and its model {job['staged']['model_id']} is not there under its name"
    steps, wanted = job["finished"]["step"], job["resolved"]["total_steps"]
    if steps != wanted:
        yield f"I8 {name}: it succeeded at step {steps} of {wanted}"


async def _told_otherwise(db: Database, records: Sequence[Told]) -> list[str]:
    """Record by record the topics hold what the list holds, byte for byte."""
    listed = {row["_id"]: value_of(row["body"]) async for row in db[EVENTS].find({}, {"body": 1})}
    broken = []
    for record in records:
        if record.fact not in listed:
            broken.append(f"I2 {record.fact}: it stands on the topic ({record.where}) and not in the event list")
        elif listed[record.fact] != record.value:
            broken.append(f"I2 {record.fact}: the topic ({record.where}) holds other bytes than the event list")
    return broken


async def _blobs(db: Database, objects: ObjectStore, jobs: Mapping[str, Doc]) -> AsyncIterator[str]:
    kept = {row["_id"] async for row in db[ledger.COLLECTION].find({"references": {"$nin": [[], None]}})}
    async for row in db[EVENTS].find({"type": "CheckpointSaved"}):
        blob = row["body"]["data"]["blob"]
        what = f"checkpoint {row['body']['data']['step']} of job {row['thing']}"
        if blob["key"] in kept:
            if problem := await _problem_of(objects, blob["key"], blob["manifest_sha256"]):
                yield f"I7 {what}: {problem}"
        elif not jobs[row["thing"]].get(DELETED):  # no run here lasts until its clock makes one that may go
            yield f"I7 {what}: the ledger does not know it"
    async for model in db["models"].find({"phase": {"$ne": "deleted"}}):
        if problem := await _problem_of(objects, model["blob"]["key"], model["blob"]["manifest_sha256"]):
            yield f"I7 model {model['_id']}: {problem}"
    async for file in db["files"].find({"phase": {"$ne": "deleted"}, "object_key": {"$ne": None}}):
        if await _sha256_of(objects, file["object_key"]) != file["sha256"]:
            yield f"I7 file {file['_id']}: its bytes are missing or others than were uploaded"


async def _problem_of(objects: ObjectStore, key: str, manifest_sha256: str) -> str | None:
    try:
        content = await objects.read(key + MANIFEST)
    except ObjectMissingError:
        return f"{key}{MANIFEST} is missing"
    if hashlib.sha256(content).hexdigest() != manifest_sha256:
        return f"{key}{MANIFEST} has another sha256 than the fact says"
    for file in json.loads(content)["files"]:
        if await _sha256_of(objects, key + file["name"]) != file["sha256"]:
            return f"{key}{file['name']} is missing or has other bytes than {MANIFEST} says"
    return None


async def _sha256_of(objects: ObjectStore, key: str) -> str | None:
    digest = hashlib.sha256()
    try:
        async for chunk in objects.get(key):
            digest.update(chunk)
    except ObjectMissingError:
        return None
    return digest.hexdigest()


async def _seen(
    api: AsyncOpenAI, db: Database, jobs: Mapping[str, Doc], acknowledged: Collection[str], deleted: Collection[str]
) -> list[str]:
    """What a user sees of some jobs, old and new: their status, every event once, models that answer until deleted."""
    broken = []
    known = sorted(acknowledged or jobs)
    for job_id in known[:: max(1, len(known) // ASKED_AT_ONCE)]:
        is_deleted = bool(jobs.get(job_id, {}).get(DELETED))
        try:
            job = await api.fine_tuning.jobs.retrieve(job_id)
            events = [event.id async for event in api.fine_tuning.jobs.list_events(job_id, limit=100)]
        except APIError as error:
            if not (is_deleted and isinstance(error, NotFoundError)):
                broken.append(f"I1 job {job_id}: the api answers {error}")
            continue
        if is_deleted:
            broken.append(f"I1 job {job_id}: the api shows it though it was deleted")
        elif job_id in jobs:
            broken += await _shown_otherwise(db, jobs[job_id], job, events)
        model = job.fine_tuned_model
        if model is not None and model not in deleted and (refusal := await _refusal(api, model)):
            broken.append(f"I8 model {model}: {refusal}")
    return broken


async def _shown_otherwise(db: Database, job: Doc, shown: FineTuningJob, events: Sequence[str]) -> list[str]:
    """`events` are the ids in the list's order, the newest first."""
    broken = []
    if shown.status != job["status"]:
        broken.append(f"I4 job {job['_id']}: the api says {shown.status}, its document {job['status']}")
    if shown.fine_tuned_model != (model := job.get("fine_tuned_model")):
        named = f"the api names {shown.fine_tuned_model}, its document {model}"
        broken.append(f"I8 job {job['_id']}: of models {named}")
    rows = db[EVENTS].find({"kind": "job", "thing": job["_id"]}).sort("seq", 1)
    told = [line["id"] async for row in rows for line in render(row, View())]
    if list(events) != told[::-1]:
        twice, differing = len(events) - len(set(events)), sorted({*told} ^ {*events})
        broken.append(f"I2 job {job['_id']}: its event list differs by {differing[:3]}, {twice} stand twice")
    return broken


async def _refusal(api: AsyncOpenAI, model: str) -> str | None:
    try:
        reply = await api.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "Where is parcel 3?"}], max_tokens=4, temperature=0
        )
    except APIError as error:
        return f"it does not answer: {error}"
    return None if reply.usage and reply.usage.completion_tokens else "its answer is empty"


def kinds_told(broken: Collection[str]) -> set[str]:
    """The invariants that these sentences name."""
    return {sentence.partition(" ")[0] for sentence in broken}


__all__ = ["DEED", "Kind", "Told", "broken_invariants", "kinds_told"]
