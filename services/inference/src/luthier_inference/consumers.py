"""Which facts wake which loop; nothing else."""

import asyncio

from luthier_common.contract import events as f
from luthier_common.contract.envelope import Envelope
from luthier_common.kit.broker import OnFact

WAKES_VERIFICATION: frozenset[str] = frozenset({f.ArtifactStaged.__name__})


def make_on_fact(wake_verification: asyncio.Event) -> OnFact:
    async def on_fact(envelope: Envelope) -> None:
        if envelope.type in WAKES_VERIFICATION:
            wake_verification.set()

    return on_fact
