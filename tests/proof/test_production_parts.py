"""The services of docker-compose.yml on real Kafka, MongoDB and S3: one job.

Their images' commands run by hand; with `LUTHIER_CONTAINER_ENGINE=docker` the images themselves, built before.
"""

import asyncio
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from openai import AsyncOpenAI
from pymongo import AsyncMongoClient

from builders.bases import make_tiny_base, write_chat_file
from builders.containers import Container, make_container, running
from builders.kafka_server import kafka_with
from builders.production import EXAMPLE, ROOMS, ROOT, compose
from builders.real_kafka import real_script
from builders.real_s3 import RealS3
from builders.waiting import until
from builders.workshop import TINY, Workshop
from luthier_common.kit.mongo import open_mongo
from luthier_stack.ports import find_free_ports

DATABASE = "luthier"
USERS = "production_parts"
"""The database that knows the user, so that it is not the root of this mongod, who has the same name."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that another user can reach, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="luthier-parts-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def made(folder: Path) -> Path:
    """The secrets of this installation."""
    subprocess.run([ROOT / "infra" / "compose" / "make-secrets", folder / "made"], check=True)
    return folder / "made"


@pytest.fixture
async def mongo_address(mongo_url: str, made: Path) -> AsyncIterator[str]:
    """The address of a mongod that has the user whom infra/compose/mongo-init.js makes, with the same roles."""
    password = (made / "mongo_luthier_password").read_text().strip()
    async with AsyncMongoClient[dict[str, Any]](mongo_url, timeoutMS=10_000) as client:
        await client.drop_database(DATABASE)
        roles = [{"role": "readWrite", "db": DATABASE}]
        await client[USERS].command("createUser", "luthier", pwd=password, roles=roles)
        yield urlsplit(mongo_url).netloc.rpartition("@")[2]
        await client[USERS].command("dropUser", "luthier")
        await client.drop_database(DATABASE)


@pytest.fixture
async def kafka_address(tmp_path: Path) -> AsyncIterator[str]:
    """Kafka with the settings that the compose file gives its broker."""
    client, controller = (f"127.0.0.1:{port}" for port in find_free_ports(2))
    told = compose(EXAMPLE)["services"]["kafka"]["environment"]
    replaced = {
        "://:9092": f"://{client}",
        "kafka:9092": client,
        "://:9093": f"://{controller}",
        "kafka:9093": controller,
        "/var/lib/kafka/data": str(tmp_path / "kafka-data"),
    }
    text = "\n".join(f"{name}={value}" for name, value in told.items() if name != "KAFKA_HEAP_OPTS")
    for there, here in replaced.items():
        text = text.replace(there, here)
    given = dict(line.split("=", 1) for line in text.splitlines())
    properties = {name.removeprefix("KAFKA_").lower().replace("_", "."): value for name, value in given.items()}
    async with kafka_with(properties, tmp_path, real_script("kafka-up").parent):
        yield client


@pytest.mark.timeout(400)
async def test_a_job_on_production_parts_ends_in_an_answering_model(
    folder: Path, made: Path, mongo_url: str, mongo_address: str, kafka_address: str, real_s3: RealS3
) -> None:
    make_tiny_base(folder / "models" / TINY, name=TINY)
    subprocess.run(["chmod", "--recursive", "a+rX", folder / "models"], check=True)  # as .env.example says
    replaced = {
        "kafka:9092": kafka_address,
        "http://s3:7070": real_s3.endpoint_url,
        "mongo:27017": mongo_address,
        "authSource=admin": f"authSource={USERS}",
        (made / "s3_access_key").read_text().strip(): real_s3.access_key,
        (made / "s3_secret_key").read_text().strip(): real_s3.secret_key,
    }
    servers = compose(EXAMPLE)["services"]
    containers = {name: make_container(name, servers[name], folder, replaced) for name in ROOMS}
    for container in containers.values():
        container.give_secrets(made)
        container.env.pop("OTEL_EXPORTER_OTLP_ENDPOINT")  # no collector is here
    await real_s3.make_bucket("luthier")
    migrate = containers.pop("migrate")
    await migrate.start()
    assert await migrate.ended(120) == 0, migrate.log
    async with running(list(containers.values())):
        await _job_to_the_end(containers["api"], mongo_url, folder)
        statuses = await asyncio.gather(*(container.stop() for container in containers.values()))
        assert dict(zip(containers, statuses, strict=True)) == dict.fromkeys(containers, 0)
    for container in (migrate, *containers.values()):
        logged = container.everything_logged()
        assert not [file for file in made.iterdir() if file.read_text().strip() in logged], container.name


async def _job_to_the_end(api: Container, mongo_url: str, folder: Path) -> None:
    await until(lambda: api.is_well("readyz"), within_s=120, every_s=1.0, what=f"a job could run: {api.log}")
    key = (api.home / "admin-key").read_text().strip()
    base_url = f"http://127.0.0.1:{api.env['LUTHIER_PORT']}/v1"
    async with open_mongo(mongo_url, DATABASE) as db, AsyncOpenAI(base_url=base_url, api_key=key) as client:
        workshop = Workshop(client, db)
        job = await workshop.ended((await workshop.create(write_chat_file(folder / "train.jsonl", 24))).id)
        assert job.status == "succeeded", job.error
        assert job.fine_tuned_model is not None
        await workshop.assert_told_exactly(job.id)
        assert await workshop.ask(job.fine_tuned_model)
