"""How soon the system works again after a fault: `/readyz` says so and some job has made a step since."""

import asyncio
import time
from collections.abc import Sequence
from typing import NamedTuple

import httpx2

from chaos.plan import Fault
from chaos.saboteur import Done
from luthier_common.kit.mongo import OUTAGES, Database

LOOK_EVERY_S = 0.5
_PROBE_LIMIT_S = 3.0


class Sample(NamedTuple):
    """What was seen at a moment (monotonic)."""

    at: float
    is_ready: bool
    progress: int


class Recovery(NamedTuple):
    """How long a fault was felt; None: to the end."""

    fault: Fault
    seconds: float | None


class Watch:
    def __init__(self, api_url: str, db: Database) -> None:
        self._url = f"{api_url}/readyz"
        self._db = db
        self.samples: list[Sample] = []
        self._at_step: dict[str, int] = {}
        self._num_steps = 0
        self.odd: list[str] = []
        """What looks failed by, other than a server that was away."""

    async def look(self) -> None:
        """Until it is cancelled."""
        async with httpx2.AsyncClient(timeout=_PROBE_LIMIT_S, trust_env=False, verify=False) as client:
            while True:
                is_ready, progress = await asyncio.gather(self._is_ready(client), self._progress())
                self.samples.append(Sample(time.monotonic(), is_ready, progress))
                await asyncio.sleep(LOOK_EVERY_S)

    async def until_recovered(self, since: float, seconds: float) -> None:
        """Until all is ready and some job goes on, or the time is over."""
        while time.monotonic() < since + seconds and _recovered_at(since, self.samples) is None:
            await asyncio.sleep(LOOK_EVERY_S)

    @property
    def _last(self) -> int:
        return self.samples[-1].progress if self.samples else 0

    async def _is_ready(self, client: httpx2.AsyncClient) -> bool:
        try:
            return (await client.get(self._url)).status_code == httpx2.codes.OK
        except httpx2.HTTPError:
            return False

    async def _progress(self) -> int:
        """Steps made and models published so far; the last known number while the database is away.

        A run that goes on from its checkpoint makes steps again: these count too.
        """
        try:
            jobs = await self._db["jobs"].find({}, {"last_step": 1}).to_list(None)
            published = await self._db["models"].count_documents({"phase": "published"})
        except OUTAGES:
            return self._last
        except Exception as error:  # a look that fails must not end the watch; what it was is told in the report
            self.odd.append(f"{type(error).__name__}: {error}"[:200])
            return self._last
        self._num_steps += sum(max(0, job["last_step"] - self._at_step.get(job["_id"], 0)) for job in jobs)
        self._at_step |= {job["_id"]: job["last_step"] for job in jobs}
        return self._num_steps + published


def recoveries(done: Sequence[Done], samples: Sequence[Sample]) -> list[Recovery]:
    """For each fault the time from its beginning to the next look that shows readiness and new progress. Pure."""
    found = []
    for one in done:
        at = _recovered_at(one.since, samples)
        found.append(Recovery(one.fault, None if at is None else at - one.since))
    return found


def _recovered_at(since: float, samples: Sequence[Sample]) -> float | None:
    before = max((sample.progress for sample in samples if sample.at <= since), default=0)
    return next((s.at for s in samples if s.at > since and s.is_ready and s.progress > before), None)
