"""Where published facts lie: kept for a moment, then written into their outboxes, many in one round trip.

By then almost all of these entries have left the outbox, since the projector already has their rows: nothing is written
for those. A crash meanwhile costs repeated messages, never lost ones.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from luthier_common.contract.topics import COLLECTIONS, Kind
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.mongo import Database, Doc, is_outage, update_matching

log = logging.getLogger(__name__)
WRITE_AFTER_S = 0.5
"""Longer than the projector takes, also under load: then a fact costs the database one write less."""
MAX_NOTES = 100
"""More are written at once. Fewer than a relay finds things at a time: what is noted must never hide all the rest."""


@dataclass(frozen=True)
class _Note:
    kind: Kind
    thing: str
    seq: int
    part: int
    offset: int


class Notes:
    """What is noted here was sent, and is not to be sent again. Keys are the ids of facts."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._notes: dict[str, _Note] = {}
        self._writing = asyncio.Lock()
        self._later: asyncio.Task[None] | None = None

    def ids(self) -> frozenset[str]:
        """The facts whose places are not written yet."""
        return frozenset(self._notes)

    def add(self, kind: Kind, part: int, offsets: Mapping[tuple[str, int], int]) -> None:
        """Note the offset of each fact, by thing and seq; they are written soon."""
        for (thing, seq), offset in offsets.items():
            self._notes[f"{kind}/{thing}/{seq}"] = _Note(kind, thing, seq, part, offset)
        if self._later is None or self._later.done():
            self._later = asyncio.create_task(self._write_later())

    def forget(self, kind: Kind, seqs_by_thing: Mapping[str, Collection[int]]) -> None:
        """These have left the outbox, so there is nothing to write."""
        for thing, seqs in seqs_by_thing.items():
            for seq in seqs:
                self._notes.pop(f"{kind}/{thing}/{seq}", None)

    async def make_room(self) -> None:
        if len(self._notes) >= MAX_NOTES:
            await self.write()

    async def write(self) -> None:
        """Write all now. What could not be written is forgotten, and so sent again."""
        async with self._writing:
            notes = dict(self._notes)
            try:
                await failpoint("relay.before_note")
                await asyncio.gather(*(self._write(kind, notes) for kind in COLLECTIONS))
                await failpoint("relay.after_note")
            except Exception as error:
                if not is_outage(error):
                    raise
                log.warning("the places of %s facts could not be noted; they are sent again: %s", len(notes), error)
            finally:
                self._notes = {key: note for key, note in self._notes.items() if notes.get(key) is not note}

    async def _write(self, kind: Kind, notes: Mapping[str, _Note]) -> None:
        places: dict[str, list[_Note]] = defaultdict(list)
        for note in notes.values():
            if note.kind == kind:
                places[note.thing].append(note)
        changes = [({"_id": thing, "pend": True}, _noting(found)) for thing, found in places.items()]
        if changes:
            await update_matching(self._db[COLLECTIONS[kind]], changes)

    async def _write_later(self) -> None:
        await asyncio.sleep(WRITE_AFTER_S)
        await self.write()


def _noting(notes: list[_Note]) -> list[Doc]:
    """The update that writes partition and offset into a thing's entries, by seq."""
    branches = [{"case": {"$eq": ["$$e.seq", note.seq]}, "then": note.offset} for note in notes]
    place = {"partition": notes[0].part, "offset": {"$switch": {"branches": branches}}}
    seqs = [note.seq for note in notes]
    entry = {"$cond": [{"$in": ["$$e.seq", seqs]}, {"$mergeObjects": ["$$e", place]}, "$$e"]}
    return [{"$set": {"outbox": {"$map": {"input": "$outbox", "as": "e", "in": entry}}}}, {"$set": flags()}]


def flags() -> Doc:
    """Expressions that keep `unsent` and `pend`, by which relay and projector find work, true to the outbox."""
    return {"unsent": {"$in": [None, "$outbox.offset"]}, "pend": {"$gt": [{"$size": "$outbox"}, 0]}}
