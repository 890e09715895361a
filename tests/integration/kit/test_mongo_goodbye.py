"""A room leaves its database soon, also one that takes what it is sent and never answers."""

import signal
import threading
import time
from pathlib import Path

from luthier_common.kit.mongo import open_mongo
from luthier_stack.settings import StackSettings
from luthier_stack.stack import Stack

THAWED_AFTER_S = 6.0


async def test_a_server_that_hangs_does_not_hold_the_loop_when_its_client_is_closed(tmp_path: Path) -> None:
    """The driver ends its sessions there in the thread that closes it, and by itself it would wait for ever."""
    settings = StackSettings(home=tmp_path / "home", services=(), servers=("mongod",), mongo_url=None)
    async with Stack(settings) as stack:
        thawing = threading.Timer(THAWED_AFTER_S, stack.kill, ("mongod", signal.SIGCONT))
        async with open_mongo(stack.env["LUTHIER_MONGO_URL"], "test_goodbye") as db:
            await db["things"].insert_one({"_id": 1})
            stack.kill("mongod", signal.SIGSTOP)
            thawing.start()
            closed_at = time.monotonic()
        took_s = time.monotonic() - closed_at
        thawing.cancel()
        stack.kill("mongod", signal.SIGCONT)
    assert took_s < THAWED_AFTER_S - 1
