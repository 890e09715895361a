"""`python fused_trainer.py FUSE_FILE`: the real trainer, whose real children carry a fuse (`fused_child.py`)."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC
from functools import partial
from pathlib import Path

from builders.trainer_node import NODE, World
from builders.waiting import until
from luthier_common.kit.room import run_room
from luthier_trainer.bootstrap import STOP_AFTER_S, main
from luthier_trainer.executor import LocalExecutor

CHILD = Path(__file__).with_name("fused_child.py")


class FusedTrainer:
    """The trainer of a world as a process, started again whenever it is not there."""

    def __init__(self, world: World, mongo_url: str, **env: str) -> None:
        self._world = world
        self._fuse = world.root / "fuse.json"
        settings = world.settings()
        self._env = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
            "LUTHIER_HOME": str(settings.home),
            "LUTHIER_MONGO_URL": mongo_url,
            "LUTHIER_MONGO_DATABASE": world.db.name,
            "LUTHIER_KAFKA_URL": "127.0.0.1:1",
            "LUTHIER_OBJECTS_URL": settings.objects_url,
            "LUTHIER_TRAINER_NODE": NODE,
            "LUTHIER_TRAINER_DEVICE": "cpu",
            "LUTHIER_TRAINER_NUM_THREADS": "1",
            "LUTHIER_RENEW_S": "0.5",
            "LUTHIER_TICK_S": "0.2",
            "LUTHIER_STEPS_EVERY_S": "0.2",
            **env,
        }
        self._process: asyncio.subprocess.Process | None = None

    async def running(self, fail_points: str = "", seed: int = 0) -> None:
        """Have it work; with fail points anew, so that it knows of them."""
        if fail_points:
            await self.stop()
        if self._process is not None and self._process.returncode is None:
            return
        broken = {"LUTHIER_FAILPOINTS": fail_points, "LUTHIER_FAILPOINTS_SEED": str(seed)} if fail_points else {}
        with (self._world.root / "trainer.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, str(Path(__file__)), str(self._fuse), env=self._env | broken, stdout=log, stderr=log
            )
        since = (await self._world.db.command("hello"))["localTime"].replace(tzinfo=UTC)

        async def lives() -> bool:
            node = await self._world.db["nodes"].find_one({"_id": NODE, "phase": "live"})
            return node is not None and node["renewed_at"] is not None and node["renewed_at"] > since

        await until(lives, within_s=60, what="a live node")

    async def died_or(self, is_over: Callable[[], Awaitable[bool]], within_s: float = 120) -> bool:
        """Whether the service died before that came true."""
        assert self._process is not None
        process = self._process

        async def either() -> bool:
            return process.returncode is not None or await is_over()

        await until(either, within_s=within_s, what="the end of the service")
        return process.returncode is not None

    async def stop(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            await self._process.wait()

    def lay_fuse(self, **instant: float) -> None:
        """Of the next child."""
        self._fuse.write_text(json.dumps(instant))

    def burnt(self) -> list[str]:
        """Where children were killed by their fuses, so far."""
        burnt = self._fuse.with_suffix(".burnt")
        return burnt.read_text().splitlines() if burnt.exists() else []

    def take_fuse_away(self) -> None:
        self._fuse.unlink(missing_ok=True)


if __name__ == "__main__":
    command = (sys.executable, "-P", str(CHILD), sys.argv[1])
    run_room("trainer", partial(main, executor=LocalExecutor(command)), stop_after_s=STOP_AFTER_S)
