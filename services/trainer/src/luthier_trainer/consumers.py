"""Which facts wake the node; nothing else."""

import asyncio

from luthier_common.contract import events as f
from luthier_common.contract.envelope import Envelope
from luthier_common.kit.broker import OnFact

WAKES_LOOK: frozenset[str] = frozenset(
    fact.__name__ for fact in (f.JobPlaced, f.JobCancelled, f.PauseRequested, f.RunLost)
)


def make_on_fact(wake_look: asyncio.Event) -> OnFact:
    async def on_fact(envelope: Envelope) -> None:
        if envelope.type in WAKES_LOOK:
            wake_look.set()

    return on_fact
