"""Users whose cancels, pauses and resumes meet the end of a run, and what their acknowledged answers oblige."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import openai

from builders.workshop import FINAL, TINY, Workshop
from luthier_common.contract.lifecycle import JOB
from luthier_common.kit.mongo import Doc

STATUSES = {phase.status for phase in JOB.phases}
TARGETS = ("checking", "waiting", "placed", "training", "trained", "staged", "verified")
TARGET_WITHIN_S = 15.0
ENDED_WITHIN_S = 180.0
POLL_S = 0.05


@dataclass(frozen=True)
class Act:
    """Verbs called at once, so long after a phase was first seen (or passed), or after the act before."""

    verbs: tuple[str, ...]
    phase: str | None
    delay_s: float


@dataclass
class Race:
    """One job and what became of its user's calls: the status that was answered, or a code."""

    number: int
    num_epochs: int
    acts: Sequence[Act]
    job_id: str = ""
    answers: list[tuple[str, str]] = field(default_factory=list)

    def acknowledged(self, verb: str) -> int:
        return sum(one == verb and answer != "invalid_state" for one, answer in self.answers)

    def __str__(self) -> str:
        acts = [f"{'+'.join(act.verbs)}@{act.phase or ''}+{act.delay_s:.2f}s" for act in self.acts]
        return f"race {self.number} ({self.job_id}): {', '.join(acts)}; answers {self.answers}"


def plan_race(seed: str, number: int) -> Race:
    """What a user of this number does; the same for the same seed."""
    dice = random.Random(f"{seed}/{number}")
    acts = []
    for _ in range(dice.randrange(1, 4)):
        verbs = dice.choices(("cancel", "pause", "resume"), (1, 5, 4), k=dice.choice((1, 1, 2, 3)))
        phase = dice.choices(TARGETS, (1, 1, 3, 4, 3, 3, 3))[0] if dice.random() < 0.7 else None
        acts.append(Act(tuple(verbs), phase, dice.uniform(0, 0.2) if phase else dice.uniform(0, 2.5)))
    return Race(number, dice.randrange(1, 4), acts)


async def run_race(workshop: Workshop, training_file: str, race: Race) -> Race:
    """Create, act, and see the job to its end: one that stays paused is resumed."""
    created = await workshop.client.fine_tuning.jobs.create(
        model=TINY,
        training_file=training_file,
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": race.num_epochs, "batch_size": 4}},
        },
        metadata={"race": str(race.number)},
    )
    race.job_id = created.id
    for act in race.acts:
        if act.phase is not None:
            await _seen(workshop, race.job_id, act.phase)
        await asyncio.sleep(act.delay_s)
        await asyncio.gather(*(_call(workshop, race, verb) for verb in act.verbs))
    deadline = time.monotonic() + ENDED_WITHIN_S
    while (status := (await workshop.client.fine_tuning.jobs.retrieve(race.job_id)).status) not in FINAL:
        assert time.monotonic() < deadline, f"{race}: it does not end, it is {await workshop.phase(race.job_id)}"
        if str(status) == "paused":
            await _call(workshop, race, "resume")
        await asyncio.sleep(0.25)
    return race


def broken_promises(race: Race, job: Doc, told: Sequence[str]) -> list[str]:
    """Where the end of a job is not what its user was told; `told` are the types of all its facts."""
    facts, status = Counter(told), job["status"]
    cancelled, paused = race.acknowledged("cancel"), facts["JobPaused"] + facts["PauseRequested"]
    claims = {
        "nothing is refused but for the job's state": {a for _, a in race.answers} <= {*STATUSES, "invalid_state"},
        "an acknowledged cancel ends cancelled, and nothing else does": (status == "cancelled") == (cancelled > 0),
        "however often it was cancelled, it is told once": facts["JobCancelled"] == min(1, cancelled),
        "no job fails of a race": status != "failed",
        "each acknowledged resume is one fact": facts["JobResumed"] == race.acknowledged("resume"),
        "an acknowledged pause was told": (paused > 0) == (race.acknowledged("pause") > 0),
        "no pause is told that was not acknowledged": paused <= race.acknowledged("pause"),
        "a job that was not cancelled succeeds": cancelled > 0 or status == "succeeded",
    }
    return [f"{race}: not so: {claim}; it is {status}, {dict(facts)}" for claim, holds in claims.items() if not holds]


async def _seen(workshop: Workshop, job_id: str, phase: str) -> None:
    """The phase, a later one, an end, or a pause: then there is nothing more to wait for."""
    later = (*TARGETS[TARGETS.index(phase) :], "paused", *FINAL)
    deadline = time.monotonic() + TARGET_WITHIN_S
    while await workshop.phase(job_id) not in later and time.monotonic() < deadline:
        await asyncio.sleep(POLL_S)


async def _call(workshop: Workshop, race: Race, verb: str) -> None:
    jobs = workshop.client.with_options(max_retries=0).fine_tuning.jobs
    call = {"cancel": jobs.cancel, "pause": jobs.pause, "resume": jobs.resume}[verb]
    try:
        answer = str((await call(race.job_id)).status)
    except openai.APIStatusError as error:
        answer = str(error.code)
    race.answers.append((verb, answer))
