"""A process of its own that hears all facts of jobs as a member of a consumer group, as a file-validator does.

It writes what it heard into the collection `heard`. SIGTERM lets it leave the group in order.

python group_member.py MONGO_URL DATABASE KAFKA_URL NAME GROUP
"""

import asyncio
import signal
import sys

from luthier_common.contract.envelope import Envelope
from luthier_common.contract.topics import TOPICS, Kind
from luthier_common.kit.broker import build_broker, hear, listening
from luthier_common.kit.logs import start_logs
from luthier_common.kit.mongo import open_mongo

HEARD = "heard"


async def main(mongo_url: str, database: str, kafka_url: str, name: str, group: str) -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    async with open_mongo(mongo_url, database) as db:

        async def on_fact(envelope: Envelope) -> None:
            done = {"$inc": {"times": 1}, "$addToSet": {"members": name}}
            await db[HEARD].update_one({"_id": envelope.id}, done, upsert=True)

        broker = build_broker(kafka_url, name)
        hear(broker, [TOPICS[Kind.JOB]], on_fact, group=group)
        async with listening(broker):
            await stopping.wait()


if __name__ == "__main__":
    start_logs(f"member-{sys.argv[4]}")
    asyncio.run(main(*sys.argv[1:]))
