"""Which facts wake which loop; nothing else."""

import asyncio

from luthier_common.contract import events as f
from luthier_common.contract.envelope import Envelope
from luthier_common.kit.broker import OnFact

WAKES_STAGING: frozenset[str] = frozenset({f.RunFinished.__name__})
WAKES_SETTLING: frozenset[str] = frozenset(
    fact.__name__
    for fact in (
        f.ArtifactStaged,
        f.ServingVerified,
        f.ServingRefused,
        f.ServingSkipped,
        f.ModelRegistered,
        f.JobCancelled,
        f.JobFailed,
        f.ModelDeleted,
    )
)


def make_on_fact(wake_staging: asyncio.Event, wake_settling: asyncio.Event) -> OnFact:
    async def on_fact(envelope: Envelope) -> None:
        if envelope.type in WAKES_STAGING:
            wake_staging.set()
        if envelope.type in WAKES_SETTLING:
            wake_settling.set()

    return on_fact
