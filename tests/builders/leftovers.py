"""What must not be left behind: slots, run directories, temporary files, unreferenced objects, processes (I6, I12)."""

import os
from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from builders.rivals import SECOND_HOME
from luthier_common.contract.events import DELETED
from luthier_common.contract.lifecycle import HELD
from luthier_common.contract.spec import JobSpec
from luthier_common.kit import ledger
from luthier_common.kit.mongo import Database, Doc
from luthier_common.kit.objects import ObjectStore

Jobs = Mapping[str, Doc]
TEMPORARY = (
    *("cache/**/*.part", "bases/**/*.part", "file-validator/check-*/*/", "registry/.*", "tmp/*"),
    *("**/.unfinished/*", "**/.part-*"),
)
"""Where the rooms write what is not finished, below an embedded stack's home."""
CACHE = "torchinductor_"
"""A library's cache below TMPDIR, one for all processes."""


async def broken_slots(db: Database, jobs: Jobs) -> list[str]:
    """A slot is held only for the placed attempt that names it, and was never used by two at a time."""
    broken: list[str] = []
    nodes = {node["_id"]: node async for node in db["nodes"].find({"slots": {"$exists": True}})}
    for node in nodes.values():
        for slot in node["slots"]:
            if (holder := slot.get("holder")) is None:
                continue
            job = jobs.get(holder["job"])
            held = (
                f"I6 slot {slot['index']} of {node['_id']} is held for attempt {holder['attempt']} of {holder['job']}"
            )
            if job is None or job["phase"] not in HELD or job["attempt"] != holder["attempt"]:
                stands = "does not exist" if job is None else f"is {job['phase']} in attempt {job['attempt']}"
                broken.append(f"{held}, which {stands}")
            elif not _names(job, node["_id"], slot["index"]):
                broken.append(f"{held}, which is placed elsewhere")
    return broken + await _used_by_two(db) + await _not_booked(db, nodes, jobs)


async def _used_by_two(db: Database) -> list[str]:
    """The usage ledger tells from when to when each slot was whose."""
    used: dict[tuple[str, int], list[tuple[datetime, datetime, str]]] = defaultdict(list)
    broken = []
    async for row in db["usage"].find({}):
        if row.get("from") is None or row.get("to") is None:
            broken.append(f"I6 usage of {row['_id']} has no beginning or no end")
            continue
        for slot in row["slots"]:
            used[(row["node"], slot)].append((row["from"], row["to"], row["_id"]))
    for (node, slot), times in used.items():
        times.sort()
        for (_, until, first), (since, _, second) in pairwise(times):
            if since < until:
                broken.append(f"I6 slot {slot} of {node} was {first}'s until {until} and {second}'s since {since}")
    return broken


async def _not_booked(db: Database, nodes: Mapping[str, Doc], jobs: Jobs) -> list[str]:
    """Every placed attempt that holds nothing any more has its row in the usage ledger."""
    booked = {(row["job"], row["attempt"], row["node"]) async for row in db["usage"].find({})}
    held = {
        (slot["holder"]["job"], slot["holder"]["attempt"], node["_id"])
        for node in nodes.values()
        for slot in node["slots"]
        if slot.get("holder")
    }
    broken = []
    async for row in db["events"].find({"type": "JobPlaced"}, {"thing": 1, "body.data": 1}):
        placed = row["body"]["data"]
        for member in placed["members"]:
            key = (row["thing"], placed["attempt"], member["node"])
            if member["node"] in nodes and row["thing"] in jobs and key not in held | booked:
                broken.append(f"I6 attempt {key} held slots that nobody wrote into the usage ledger")
    return broken


async def broken_objects(db: Database, objects: ObjectStore, jobs: Jobs) -> list[str]:
    """Every object stands in the ledger, and every reference there is to something that is there."""
    rows = {row["_id"]: row async for row in db[ledger.COLLECTION].find({})}
    prefixes = tuple(key for key in rows if key.endswith("/"))
    broken = [
        f"I12 object {info.key} ({info.bytes} bytes) stands in no row of the objects ledger: nothing ever removes it"
        async for info in objects.list()
        if info.key not in rows and not info.key.startswith(prefixes)
    ]
    files = {file["_id"]: file["phase"] async for file in db["files"].find({}, {"phase": 1})}
    models = {model["_id"]: model["phase"] async for model in db["models"].find({}, {"phase": 1})}
    kept = {job_id: "deleted" if job.get(DELETED) else job["phase"] for job_id, job in jobs.items()}
    named = {
        file_id: "named"
        for job in jobs.values()
        if not job.get(DELETED)
        for file_id in JobSpec.model_validate(job["spec"]).files
    }
    phases = {"file": files, "model": models, "job": kept, "jobs": named}
    for row in rows.values():
        for reference in row["references"]:
            kind, _, thing = reference.partition("/")
            if kind in phases and row.get("intent_until") is None and phases[kind].get(thing) in (None, "deleted"):
                broken.append(f"I12 object {row['_id']} is kept by {reference}, which is not there")
            if kind == "registering" and (thing not in jobs or jobs[thing]["phase"] != "trained"):
                broken.append(f"I12 object {row['_id']} is kept by {reference}, which nobody registers")
    return broken


def broken_home(home: Path, jobs: Jobs) -> list[str]:
    """Run directories of runs that are over, half-written files, forgotten conversions."""
    held = {f"{job_id}-a{job['attempt']}" for job_id, job in jobs.items() if job["phase"] in HELD}
    broken = set()
    for each in (home, home / SECOND_HOME):
        runs = each.glob("trainer/*/*/")
        broken |= {f"I12 run directory {path} is left" for path in runs if path.name not in held}
        left = [path for pattern in TEMPORARY for path in each.glob(pattern) if not path.name.startswith(CACHE)]
        broken |= {f"I12 temporary file {path} is left" for path in left}
    return sorted(broken)


def stray_processes(home: Path, owner_pid: int | None) -> list[str]:
    """Processes that name this home and do not descend from `owner_pid` (None: all that name it)."""
    mark, parents, found = os.fsencode(home), dict[int, int](), dict[int, str]()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if mark in command or mark in environment:
            found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")[:120]
    return [
        f"I12 process {pid} is an orphan: {command}"
        for pid, command in sorted(found.items())
        if owner_pid is None or not _descends(pid, owner_pid, parents)
    ]


def _descends(pid: int, ancestor: int, parents: Mapping[int, int]) -> bool:
    while pid in parents and pid != ancestor:
        pid = parents[pid]
    return pid == ancestor


def _names(job: Doc, node: str, slot: int) -> bool:
    return any(member["node"] == node and slot in member["slots"] for member in job.get("members") or ())
