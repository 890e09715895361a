"""Kafka, MongoDB and S3 that take nobody without TLS (and Kafka nobody without a password or a certificate)."""

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError
from werkzeug.serving import make_server

from builders.authority import Authority
from builders.kafka_server import kafka_with
from builders.waiting import until
from luthier_stack.binaries import find_mongod
from luthier_stack.mongo import REPLICA_SET, EmbeddedMongo
from luthier_stack.part import tied_to_this_process
from luthier_stack.ports import find_free_ports

USER = "luthier"
PASSWORD = "kafka-pass-7d1f"
"""Of the two users: the one of SCRAM and the one of PLAIN."""
_JAAS = "org.apache.kafka.common.security"


class SecureKafka(NamedTuple):
    sasl_url: str
    """SASL_SSL: TLS, and a user with a password."""
    ssl_url: str
    """SSL: TLS, and a client certificate of the same authority."""
    open_url: str
    """Neither: for the server itself."""


@asynccontextmanager
async def secure_kafka(folder: Path, real: Path, authority: Authority) -> AsyncIterator[SecureKafka]:
    """A real Apache Kafka of one broker; `real` is the folder of the real servers."""
    ports = find_free_ports(4)
    scram = f"SCRAM-SHA-512=[name={USER},password={PASSWORD}]"
    async with kafka_with(_properties(folder, ports, authority), folder, real, "--add-scram", scram):
        yield SecureKafka(*(f"127.0.0.1:{port}" for port in ports[:3]))


def _properties(folder: Path, ports: list[int], authority: Authority) -> dict[str, str]:
    sasl, mutual, inner, controller = (f"127.0.0.1:{port}" for port in ports)
    *_, both = authority.issue("broker")
    served = f"SASL_SSL://{sasl},SSL://{mutual},PLAINTEXT://{inner}"
    plain = f'user_{USER}="{PASSWORD}"'
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@{controller}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"{served},CONTROLLER://{controller}",
        "advertised.listeners": served,
        "listener.security.protocol.map": "SASL_SSL:SASL_SSL,SSL:SSL,PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(both),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(authority.ca_file),
        "listener.name.ssl.ssl.client.auth": "required",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512,PLAIN",
        "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": f"{_JAAS}.scram.ScramLoginModule required;",
        "listener.name.sasl_ssl.plain.sasl.jaas.config": f"{_JAAS}.plain.PlainLoginModule required {plain};",
        "log.dirs": f"{folder}/log",
        "auto.create.topics.enable": "false",
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "4",
        "group.initial.rebalance.delay.ms": "0",
        "log.cleaner.dedupe.buffer.size": "8388608",
    }


@asynccontextmanager
async def secure_mongo(folder: Path, authority: Authority) -> AsyncIterator[str]:
    """The embedded mongod as a replica set of one that takes TLS only; its URL, which does not name the authority."""
    mongo = EmbeddedMongo(folder, find_mongod(None))
    *_, both = authority.issue("mongod")
    command = (*mongo.command, "--tlsMode", "requireTLS", "--tlsCertificateKeyFile", str(both))
    command += ("--tlsCAFile", str(authority.ca_file), "--tlsAllowConnectionsWithoutCertificates")
    log = folder / "mongod.log"
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(*tied_to_this_process(command), stdout=out, stderr=out)
    trust = {"tls": True, "tlsCAFile": str(authority.ca_file), "directConnection": True, "timeoutMS": 5000}
    try:
        async with AsyncMongoClient[dict[str, Any]](f"mongodb://127.0.0.1:{mongo.port}", **trust) as client:
            await until(lambda: _begun(client, mongo.port), within_s=30, every_s=0.1, what="mongod with TLS")
            password = urlsplit(mongo.url).password
            await client.admin.command("createUser", urlsplit(mongo.url).username, pwd=password, roles=["root"])
        yield mongo.url
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _begun(client: AsyncMongoClient[dict[str, Any]], port: int) -> bool:
    """Whether it takes writes; on the way there it is told to be a replica set."""
    try:
        hello = await client.admin.command("hello")
        if hello.get("isreplicaset"):
            members = [{"_id": 0, "host": f"127.0.0.1:{port}"}]
            await client.admin.command({"replSetInitiate": {"_id": REPLICA_SET, "members": members}})
    except PyMongoError:
        return False
    return bool(hello.get("isWritablePrimary"))


@contextmanager
def secure_s3(authority: Authority) -> Iterator[str]:
    """An S3 server over HTTPS; its address. It does not check signatures."""
    cert, key, _ = authority.issue("s3")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    app = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler, ssl_context=context)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
