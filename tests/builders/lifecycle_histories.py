"""Seeded histories of one job: rooms act in turn and at once, twice, late and on old documents; a model judges."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from builders.lifecycle_deeds import ROOM_OF, Deed, Rooms
from builders.lifecycle_model import Model, Told
from builders.losing_driver import lose_next, losing_driver
from luthier_common.contract.lifecycle import HELD, JOB
from luthier_common.kit.mongo import Database, Doc

AT_ONCE = 24
ONWARD = {
    "checking": ("read", "accept", "accept", "accept"),
    "waiting": ("place", "place", "wait", "supervise"),
    "placed": ("renew", "start", "start", "reject-checkpoint"),
    "training": ("renew", "step", "steps", "save", "validate", "finish", "crash", "lose"),
    "pausing": ("step", "save", "run-paused", "run-paused"),
    "trained": ("stage",),
    "staged": ("verify", "verify", "skip", "refuse"),
    "verified": ("register",),
    "paused": ("resume", "supervise"),
    "succeeded": ("cancel", "delete"),
    "failed": ("restart", "restart", "delete"),
    "cancelled": ("restart", "restart", "delete"),
}
"""What tends to happen next, so that histories go all the way; half of the deeds are drawn from all there are."""
DONE_WORDS = ("applied", "placed")
UNNAMED = ("place", "lose", "fail", "exhaust")
"""Deeds without an op id or a natural key: whoever lost the answer cannot know his write from another's."""


@dataclass(frozen=True)
class Performed:
    """A deed and what each of its calls answered; None where the answer was lost and the call was made again."""

    deed: Deed
    answers: tuple[str | None, ...]
    is_lost_inside: bool = False
    """The driver, too, lost an answer: the room itself had to find out what had become of its write."""

    def __str__(self) -> str:
        inside = " (lost inside)" if self.is_lost_inside else ""
        return f"{self.deed.name}:{'/'.join(answer or 'lost' for answer in self.answers)}{inside}"

    def fits(self, at: int, judged: str) -> bool:
        """Whether call number `at` may have answered so, where the model judges so."""
        answer = self.answers[at]
        if answer in (None, judged):
            return True
        is_settled = self.is_lost_inside and judged in DONE_WORDS
        return is_settled and (answer == "duplicate" or self.deed.name in UNNAMED)


class History:
    """One job's life from seed and number."""

    def __init__(self, db: Database, seed: str, number: int) -> None:
        self.dice = random.Random(f"{seed}/{number}")
        self.name = f"seed {seed}, history {number}"
        self.db, self.job_id = db, f"ftjob-{seed}-{number}"
        self.rooms, self.model = Rooms(db, self.job_id, self.dice), Model()
        self.steps: list[str] = []
        self.answers: Counter[str] = Counter()

    async def run(self) -> "History":
        """To the end of its dice; AssertionError with the whole transcript when an answer or a document is wrong."""
        await self.rooms.join_node()
        made = await asyncio.gather(*(self.rooms.create() for _ in range(self.dice.randrange(1, 4))))
        self._demand(sum(one.applied for one in made) == 1, "the job was not created exactly once")
        await self._look([])
        for _ in range(self.dice.randrange(8, 45)):
            if JOB.is_final(self.model.phase) and self.dice.random() < 0.4:
                break
            await self._step()
        await self.rooms.supervise(ttl_s=0)
        slots, _ = await self.rooms.trainer.read_slots() or ([], None)
        held = [slot["holder"]["attempt"] for slot in slots if slot["holder"]]
        self._demand(held == ([self.model.attempt] if self.model.phase in HELD else []), f"slots stay held: {held}")
        return self

    async def told(self, doc: Doc) -> list[Told]:
        """Outbox and event list together."""
        facts = {entry["seq"]: _told(entry, entry["attempt"]) for entry in doc["outbox"]}
        if len(facts) < doc["seq"]:
            fields = ("seq", "type", "generation", "terminal", "body.attempt")
            rows = self.db["events"].find({"kind": "job", "thing": self.job_id}, dict.fromkeys(fields, 1))
            facts |= {row["seq"]: _told(row, row["body"]["attempt"]) async for row in rows}
        return [facts[seq] for seq in sorted(facts)]

    async def _step(self) -> None:
        """One deed, one whose answer is lost, the same one twice at once, or two at once."""
        kind = self.dice.random()
        one, other = self._pick(), self._pick()
        if kind < 0.4:
            plan = [(one, 0)]
        elif kind < 0.55:
            plan = [(one, self.dice.randrange(1, 3))]
        elif kind < 0.65:
            plan = [(one, 0), (one, 0)]
        else:
            plan = [(one, int(self.dice.random() < 0.2)), (other, int(self.dice.random() < 0.2))]
        inside = [deed.name != "renew" and self.dice.random() < 0.15 for deed, _ in plan]
        performed = await asyncio.gather(
            *(_perform(deed, num_lost, is_lost) for (deed, num_lost), is_lost in zip(plan, inside, strict=True))
        )
        self.answers.update(answer or "thrown away" for one in performed for answer in one.answers)
        self.answers["lost inside"] += sum(one.is_lost_inside for one in performed)
        self.steps.append(" | ".join(map(str, performed)))
        await self._look(performed)

    def _pick(self) -> Deed:
        while True:
            name = self.dice.choice(ONWARD[self.model.phase] if self.dice.random() < 0.55 else list(ROOM_OF))
            if (deed := self.rooms.deed(name)) is not None:
                return deed

    async def _look(self, performed: Sequence[Performed]) -> None:
        """The document must be what some order of the calls leads to."""
        doc = await self.db["jobs"].find_one({"_id": self.job_id})
        assert doc is not None
        told = await self.told(doc)
        explained = _explain(self.model, [(one, 0) for one in performed], doc, told)
        if explained is None:
            found = self.model.differences(doc, told)
            self._demand(False, f"no order of these calls explains it; before them, against now: {found}")
            return
        self.model = explained
        self.model.lease = doc.get("lease")
        broken = [*self.model.broken(), *await self.rooms.misplaced(doc)]
        self._demand(not broken, "; ".join(broken))
        self.rooms.seen.append({name: value for name, value in doc.items() if name != "outbox"})

    def _demand(self, holds: bool, why: str) -> None:
        assert holds, "\n".join([f"{self.name}: {why}", *self.steps])


async def run_histories(db: Database, seed: str, numbers: Iterable[int]) -> list[History]:
    """Many at once on this loop; the first that is broken ends all."""
    waiting, done = iter(numbers), list[History]()

    async def work() -> None:
        for number in waiting:
            done.append(await History(db, seed, number).run())

    with losing_driver():
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(work())
    return done


async def _perform(deed: Deed, num_lost: int, is_lost_inside: bool) -> Performed:
    """Its answer is thrown away so many times, and the same call made again."""
    lose_next(int(is_lost_inside))
    for number in range(num_lost):
        await deed.do(number > 0)
    return Performed(deed, (*[None] * num_lost, await deed.do(num_lost > 0)), is_lost_inside)


def _explain(model: Model, threads: list[tuple[Performed, int]], doc: Doc, told: list[Told]) -> Model | None:
    """The model after an order of the calls, each thread's kept, that gives these answers and this document."""
    if all(at == len(one.answers) for one, at in threads):
        return None if model.differences(doc, told) else model
    for number, (one, at) in enumerate(threads):
        if at == len(one.answers):
            continue
        rest = [*threads[:number], (one, at + 1), *threads[number + 1 :]]
        after, answer = model.copy(), one.answers[at]
        found = None
        if one.fits(at, one.deed.judge(after, at > 0)):
            found = _explain(after, rest, doc, told)
        if found is None and one.deed.may_miss and answer in (None, "refused"):
            found = _explain(model, rest, doc, told)
        if found is not None:
            return found
    return None


def _told(fact: Doc, attempt: int) -> Told:
    return fact["seq"], fact["type"], fact["generation"], attempt, bool(fact.get("terminal"))
