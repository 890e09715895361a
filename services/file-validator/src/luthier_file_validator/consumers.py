"""Which facts wake which loop; nothing else."""

import asyncio

from luthier_common.contract import events as f
from luthier_common.contract.envelope import Envelope
from luthier_common.kit.broker import OnFact

WAKES_FILES = frozenset({f.FileUploaded.__name__})
WAKES_JOBS = frozenset({f.JobCreated.__name__, f.FileValidated.__name__, f.FileDeleted.__name__})


def make_on_fact(wake_files: asyncio.Event, wake_jobs: asyncio.Event) -> OnFact:
    async def on_fact(envelope: Envelope) -> None:
        if envelope.type in WAKES_FILES:
            wake_files.set()
        if envelope.type in WAKES_JOBS:
            wake_jobs.set()

    return on_fact
