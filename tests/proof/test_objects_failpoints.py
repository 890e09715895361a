"""A process that breaks inside a write to S3 leaves a whole object or none, and nothing that the sweep does not find.

Sample: each name with one fault drawn from the seed; full: each with all.
"""

import asyncio
import os
import random
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import aioboto3
import pytest
from moto.server import ThreadedMotoServer

from builders.scale import FULL
from luthier_common.kit.failpoints import failpoint_names
from luthier_common.kit.objects import S3Access, open_objects

SEED = int(os.environ.get("LUTHIER_PROOF_SEED", "1"))
NAMES = [name for name in failpoint_names("luthier_common") if fnmatchcase(name, "objects_s3.*")]
FAULTS = ("kill", "raise", "lost", "delay:2")
DICE = random.Random(SEED)
CASES = [(name, fault) for name in NAMES for fault in (FAULTS if FULL else (DICE.choice(FAULTS),))]
BUCKET, KEY = "failpoints", "org/project/files/large"
CONTENT = bytes(range(256)) * (9 * 1024 * 1024 // 256)
WRITER = """
import asyncio, sys
from luthier_common.kit.objects import S3Access, open_objects

async def main():
    async with open_objects(sys.argv[1], S3Access(sys.argv[2], "us-east-1", "test", "test-secret")) as store:
        await store.put(sys.argv[3], bytes(range(256)) * (9 * 1024 * 1024 // 256))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def access() -> Iterator[S3Access]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield S3Access(f"http://{host}:{port}", "us-east-1", "test", "test-secret")
    server.stop()


@pytest.fixture
async def s3(access: S3Access) -> AsyncIterator[Any]:
    session = aioboto3.Session(access.access_key_id, access.secret_access_key, region_name=access.region)
    async with session.client("s3", endpoint_url=access.endpoint_url) as client:
        await client.create_bucket(Bucket=BUCKET)
        yield client


@pytest.mark.parametrize(("name", "fault"), CASES)
async def test_a_write_in_parts_is_whole_or_absent(
    access: S3Access, s3: Any, tmp_path: Path, name: str, fault: str
) -> None:
    async with open_objects(f"s3://{BUCKET}", access) as store:
        await store.delete(KEY)
        log_path = tmp_path / "failpoints.log"
        broken = await _write(access, f"{name}={fault}*1", log_path)
        assert f"{name} {fault.partition(':')[0]} " in log_path.read_text(), "the fail point was never hit"
        assert (broken == 0) == fault.startswith("delay")
        found = await store.head(KEY)
        assert found is None or found.bytes == len(CONTENT)
        assert found is None or name == "objects_s3.after_complete" or fault.startswith("delay")
        await store.sweep(timedelta(minutes=-1))
        assert "Uploads" not in await s3.list_multipart_uploads(Bucket=BUCKET)
        await store.put(KEY, CONTENT)
        assert await store.read(KEY, limit_bytes=len(CONTENT)) == CONTENT


async def _write(access: S3Access, rules: str, log_path: Path) -> int:
    env = {"PATH": os.environ["PATH"], "LUTHIER_FAILPOINTS": rules, "LUTHIER_FAILPOINTS_LOG": str(log_path)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, f"s3://{BUCKET}", str(access.endpoint_url), KEY, env=env,
        stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    return await process.wait()
