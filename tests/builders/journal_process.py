"""A process of its own with a relay and a projector, as every api process has. SIGTERM ends it in order.

python journal_process.py MONGO_URL DATABASE KAFKA_URL OWNER CLUSTER
"""

import asyncio
import signal
import sys

from luthier_common.journal.projector import Projector, run_projector
from luthier_common.journal.relay import Relay, run_relay
from luthier_common.journal.wake import Wake, wake_on_change
from luthier_common.kit.clock import SystemClock
from luthier_common.kit.logs import start_logs
from luthier_common.kit.migrate import source_of
from luthier_common.kit.mongo import open_mongo
from luthier_common.kit.stream import Reader, Writer


async def main(mongo_url: str, database: str, kafka_url: str, owner: str, cluster: str) -> None:
    clock, stopping, wake = SystemClock(), asyncio.Event(), Wake()

    def stop() -> None:
        stopping.set()
        wake.set()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    async with open_mongo(mongo_url, database) as db:
        source = await source_of(db, cluster)
        writer, reader = Writer(kafka_url), Reader(kafka_url)
        relay = Relay(db, writer, owner=owner, source=source, clock=clock)
        projector = Projector(db, reader, owner=owner, clock=clock, source=source, trimmed=relay.forget)
        watching = asyncio.create_task(wake_on_change(db, wake))
        try:
            await asyncio.gather(
                run_relay(relay, wake, stopping, lambda: None), run_projector(projector, stopping, lambda: None)
            )
        finally:
            watching.cancel()
            await writer.close()
            await reader.close()


if __name__ == "__main__":
    start_logs(f"journal-{sys.argv[4]}")
    asyncio.run(main(*sys.argv[1:]))
