"""What the event list says of one thing, held against its document: invariants I2 to I5. Pure."""

from collections.abc import Iterator, Sequence

from luthier_common.contract.events import DELETED, read_fact
from luthier_common.contract.lifecycle import LIFECYCLES, NEW
from luthier_common.contract.topics import Kind
from luthier_common.kit.mongo import Doc

USERS_ROOM, TEST = "api", "test"
"""A user acts through the api; a test that states facts itself says so."""
STORED = {"CheckpointSaved": "blob", "RunFinished": "artifact"}
"""Facts that name what their attempt has stored, and in which field."""


def broken_history(kind: Kind, thing: Doc, rows: Sequence[Doc]) -> Iterator[str]:
    """Sentences on one thing; `rows` are its events in order of seq."""
    name = f"{kind} {thing['_id']}"
    if thing.get("outbox"):
        seqs = [entry["seq"] for entry in thing["outbox"]]
        yield f"I11 {name}: facts {_short(seqs)} still wait in its outbox"
    gaps = list(_gaps(name, thing, rows))
    yield from gaps
    yield from _ends(kind, name, thing, rows)
    yield from _deletions(kind, name, thing, rows)
    if not gaps:
        yield from _replay(kind, name, thing, rows)
    if kind is Kind.JOB:
        yield from _attempts(name, thing, rows)
        yield from _steps(name, rows)


def _gaps(name: str, thing: Doc, rows: Sequence[Doc]) -> Iterator[str]:
    told = [row["seq"] for row in rows]
    waiting = {entry["seq"] for entry in thing.get("outbox") or ()}
    if missing := sorted(set(range(1, thing["seq"] + 1)) - set(told) - waiting):
        yield f"I2 {name}: events {_short(missing)} of 1..{thing['seq']} are missing"
    if doubled := sorted({seq for seq in told if told.count(seq) > 1}):
        yield f"I2 {name}: events {_short(doubled)} stand twice"
    if strangers := [seq for seq in told if not 1 <= seq <= thing["seq"]]:
        yield f"I2 {name}: events {_short(strangers)} lie beyond its last fact {thing['seq']}"


def _ends(kind: Kind, name: str, thing: Doc, rows: Sequence[Doc]) -> Iterator[str]:
    is_final, closing = LIFECYCLES[kind].is_final(thing["phase"]), _closing(kind)
    for generation in range(1, thing["generation"] + 1):
        told = [row for row in rows if row["generation"] == generation and row["type"] not in closing]
        ends = [row["seq"] for row in told if row.get("terminal")]
        where = f"{name}, generation {generation}"
        is_over = is_final or generation < thing["generation"]
        if is_over and len(ends) != 1:
            yield f"I3 {where}: {len(ends)} terminal facts ({_short(ends)}) though it is {thing['phase']}"
        elif not is_over and ends:
            yield f"I3 {where}: event {_short(ends)} is terminal though it is {thing['phase']}"
        elif ends and ends[0] != told[-1]["seq"]:
            yield f"I3 {where}: event {told[-1]['seq']} ({told[-1]['type']}) follows the terminal fact {ends[0]}"


def _deletions(kind: Kind, name: str, thing: Doc, rows: Sequence[Doc]) -> Iterator[str]:
    """A deletion that leaves the status as it was is the last that is told, once."""
    told = [row["seq"] for row in rows if row["type"] in _closing(kind)]
    if told and (len(told) > 1 or told[0] != rows[-1]["seq"]):
        yield f"I3 {name}: event {rows[-1]['seq']} ({rows[-1]['type']}) follows its deletion {told[0]}"
    if bool(told) != bool(thing.get(DELETED)) and not thing.get("outbox"):
        yield f"I4 {name}: it was deleted {len(told)} times and its document says {bool(thing.get(DELETED))}"


def _closing(kind: Kind) -> set[str]:
    return {row.fact.__name__ for row in LIFECYCLES[kind].rows if row.closes}


def _replay(kind: Kind, name: str, thing: Doc, rows: Sequence[Doc]) -> Iterator[str]:
    life, phase = LIFECYCLES[kind], NEW
    for row in rows:
        fact = read_fact(row["type"], row["body"]["data"])
        moved = None if fact is None else life.moves([fact]).get(phase)
        if moved is None:
            yield f"I4 {name}: event {row['seq']} ({row['type']}) is no move from {phase}"
            return
        if (room := row["body"]["actor"]["room"] or USERS_ROOM) not in (TEST, *_rooms(kind, row["type"])):
            yield f"I4 {name}: event {row['seq']} ({row['type']}) was stated by {room}, which may not"
        phase = moved
    if thing.get("outbox") or phase == NEW:
        return
    if (thing["phase"], thing["status"]) != (phase, life.status_of(phase)):
        yield (
            f"I4 {name}: it is {thing['status']} ({thing['phase']}) though its facts lead to "
            f"{life.status_of(phase)} ({phase})"
        )


def _rooms(kind: Kind, fact: str) -> set[str]:
    """Which rooms may state it."""
    rows = (row for row in LIFECYCLES[kind].rows if row.fact.__name__ == fact)
    return {room for row in rows for room in row.room.split(", ")}


def _attempts(name: str, thing: Doc, rows: Sequence[Doc]) -> Iterator[str]:
    """Each placement raises the attempt by one, nothing else moves it, and no fact of an older one comes later."""
    attempt, started = 0, set[int]()
    for row in rows:
        told, event = row["body"]["attempt"], f"event {row['seq']} ({row['type']})"
        if row["type"] == "JobPlaced":
            if told != attempt + 1 or row["body"]["data"]["attempt"] != told:
                yield f"I5 {name}: {event} places attempt {row['body']['data']['attempt']} after {attempt}"
            attempt = told
        elif told != attempt:
            yield f"I5 {name}: {event} was accepted from attempt {told} while {attempt} is placed"
            attempt = max(attempt, told)
        elif row["type"] in STORED and f"/a{attempt}/" not in row["body"]["data"][STORED[row["type"]]]["key"]:
            yield f"I5 {name}: {event} names bytes of another attempt while {attempt} is placed"
        elif row["type"] == "RunStarted":
            if attempt in started:
                yield f"I5 {name}: {event} starts attempt {attempt} a second time"
            started.add(attempt)
    if rows and not thing.get("outbox") and attempt != thing["attempt"]:
        yield f"I5 {name}: its facts end at attempt {attempt}, its document says {thing['attempt']}"


def _steps(name: str, rows: Sequence[Doc]) -> Iterator[str]:
    last = 0
    for row in rows:
        if row["type"] == "JobRestarted":
            last = 0
        elif row["type"] == "StepCompleted":
            step = row["body"]["data"]["step"]
            if step <= last:
                yield f"I5 {name}: event {row['seq']} tells step {step} after step {last}"
            last = max(last, step)


def _short(seqs: Sequence[int]) -> str:
    listed = ", ".join(map(str, seqs[:8]))
    return f"{listed}, ... ({len(seqs)})" if len(seqs) > 8 else listed
