"""Which facts wake which loop; nothing else."""

import asyncio

from luthier_common.contract import events as f
from luthier_common.contract.envelope import Envelope
from luthier_common.kit.broker import OnFact

WAKES_CYCLE: frozenset[str] = frozenset(
    fact.__name__
    for fact in (
        f.DataAccepted,
        f.JobResumed,
        f.JobRestarted,
        f.JobCancelled,
        f.RunFinished,
        f.RunFailed,
        f.RunPaused,
        f.NodeJoined,
        f.NodeCapacityChanged,
    )
)


def make_on_fact(wake_cycle: asyncio.Event) -> OnFact:
    async def on_fact(envelope: Envelope) -> None:
        if envelope.type in WAKES_CYCLE:
            wake_cycle.set()

    return on_fact
