"""A real S3 server over a directory, which checks signatures; also as a part that is started again when it dies."""

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import aioboto3
from botocore.config import Config

from builders.real_kafka import real_script
from luthier_stack.part import Part, PartSpec
from luthier_stack.ports import find_free_ports

READY_WITHIN_S = 60.0
HALF_WRITTEN = re.compile(r"-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
"""What the server calls a file until it is whole."""


class RealS3(NamedTuple):
    """Where it is, and who may come in."""

    endpoint_url: str
    access_key: str = "test"
    secret_key: str = "test-secret"
    region: str = "us-east-1"

    @property
    def env(self) -> Mapping[str, str]:
        """What clients read of it."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": self.region,
        }

    async def make_bucket(self, name: str) -> None:
        session = aioboto3.Session(
            aws_access_key_id=self.access_key, aws_secret_access_key=self.secret_key, region_name=self.region
        )
        async with session.client("s3", endpoint_url=self.endpoint_url, config=Config(signature_version="s3v4")) as s3:
            await s3.create_bucket(Bucket=name)


class SupervisedS3:
    """One that is killed and stopped; its part has it started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def pid(self) -> int | None:
        """The server's own, as its start script notes it."""
        with suppress(OSError, ValueError):
            pid = int((self._folder / "pid").read_text())
            if os.fsencode(self._folder) in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        return None

    def kill(self, number: signal.Signals) -> None:
        if (pid := self.pid) is None:
            raise ProcessLookupError
        os.kill(pid, number)


@asynccontextmanager
async def supervised_s3(folder: Path, objects: Path) -> AsyncIterator[tuple[RealS3, SupervisedS3]]:
    """What it stores lies in `objects`, what it says in `folder`."""
    (port,) = find_free_ports(1)
    folder.mkdir()
    objects.mkdir(parents=True, exist_ok=True)
    (folder / "data").symlink_to(objects)

    async def answers() -> bool:
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return True
        return False

    async def is_cleared() -> bool:
        """A file that a kill left half-written makes this server fail every listing, for ever."""
        started_at_s = (folder / "pid").stat().st_mtime
        for path in objects.rglob("*"):
            with suppress(FileNotFoundError):
                if HALF_WRITTEN.search(path.name) and path.stat().st_mtime < started_at_s:
                    path.unlink()
        return True

    spec = PartSpec(
        name="s3",
        command=(str(real_script("s3-up")), str(folder), str(port)),
        env={"PATH": os.environ["PATH"]},
        log_path=folder / "log",
        is_alive=answers,
        is_ready=answers,
        settle=is_cleared,
        longest_delay_s=1.0,
    )
    part = Part(spec)
    part.start()
    try:
        await part.wait_alive(READY_WITHIN_S)
        yield RealS3(f"http://127.0.0.1:{port}"), SupervisedS3(folder)
    finally:
        await part.stop()
