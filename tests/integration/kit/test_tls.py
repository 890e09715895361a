"""TLS and passwords by settings, to real servers that take nobody without them; what is wrong is named, never shown."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aioboto3
import pytest

from builders.authority import Authority
from builders.real_kafka import real_script
from builders.real_s3 import RealS3
from builders.secure_servers import PASSWORD, USER, SecureKafka, secure_kafka, secure_mongo, secure_s3
from builders.waiting import until
from luthier_common.contract.envelope import Envelope
from luthier_common.contract.topics import DEAD_LETTERS, TOPICS, Kind
from luthier_common.kit.broker import build_broker, hear, listening
from luthier_common.kit.errors import LuthierError, SettingError
from luthier_common.kit.kafka_access import KafkaAccess, kafka_access, why_refused
from luthier_common.kit.mongo import open_mongo
from luthier_common.kit.objects import S3Access, open_objects
from luthier_common.kit.settings import RoomSettings
from luthier_common.kit.stream import Message, Part, Reader, Writer, ensure_topics

CONSUMER = Path(__file__).resolve().parents[3] / "examples" / "event-consumer" / "consume.py"
WRONG = "not-the-password-9c2e"
LATE = "no broker answers in time at LUTHIER_KAFKA_URL"
"""From a broker that is just slow as well: it says nothing of what is wrong, and whoever asks asks again."""


class Trust(NamedTuple):
    """Whom the servers belong to, and somebody else."""

    ours: Authority
    strange: Authority


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    folder = tmp_path_factory.mktemp("authorities")
    return Trust(Authority(folder / "ours"), Authority(folder / "strange", "Somebody else"))


@pytest.fixture(scope="module")
async def kafka(trust: Trust, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SecureKafka]:
    real = real_script("kafka-up").parent
    async with secure_kafka(tmp_path_factory.mktemp("kafka-tls"), real, trust.ours) as kafka:
        yield kafka


@pytest.fixture(scope="module")
async def tls_mongo_url(trust: Trust, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with secure_mongo(tmp_path_factory.mktemp("mongo-tls"), trust.ours) as url:
        yield url


@pytest.fixture(scope="module")
def https_s3(trust: Trust) -> Iterator[str]:
    with secure_s3(trust.ours) as url:
        yield url


def access_of(**settings: Any) -> KafkaAccess:
    unused = {"mongo_url": "mongodb://unused", "kafka_url": "unused:1", "objects_url": "file:///unused"}
    named = {name.removeprefix("kafka_"): value for name, value in settings.items()}
    return kafka_access(RoomSettings(**unused, **{f"kafka_{name}": value for name, value in named.items()}))


def with_password(trust: Trust, mechanism: str = "SCRAM-SHA-512", password: str = PASSWORD) -> KafkaAccess:
    return access_of(
        security_protocol="SASL_SSL",
        ca_file=trust.ours.ca_file,
        sasl_mechanism=mechanism,
        user=USER,
        password=password,
    )


def with_certificate(trust: Trust) -> KafkaAccess:
    cert, key, _ = trust.ours.issue("room", address=None)
    return access_of(security_protocol="SSL", ca_file=trust.ours.ca_file, cert_file=cert, key_file=key)


@pytest.mark.parametrize("how", ["SCRAM-SHA-512", "PLAIN", "certificate"])
async def test_facts_flow_over_tls(kafka: SecureKafka, trust: Trust, how: str) -> None:
    """Admin client, producer, FastStream's consumer and publisher, and the journal's reader: each is taken in."""
    is_mutual = how == "certificate"
    url = kafka.ssl_url if is_mutual else kafka.sasl_url
    access = with_certificate(trust) if is_mutual else with_password(trust, how)
    await ensure_topics(url, access)
    await until(lambda: _is_taken_in(url, access), what="an answer of the broker in time")
    broker = build_broker(url, "test", access)
    hear(broker, [TOPICS[Kind.NODE]], _never, group=f"group-{how}")
    writer, reader = Writer(url, access), Reader(url, access)
    async with listening(broker):
        await writer.send(TOPICS[Kind.NODE].name, 0, [Message(b"k", how.encode(), [("ce_type", b"Nothing")])])
        await reader.seek({Part(DEAD_LETTERS.name, 0): 0})

        async def buried() -> bool:
            batches, _ = await reader.read(wait_ms=200)
            return any(record.value == how.encode() for records in batches.values() for record in records)

        await until(buried, what="the message that nobody can read among the dead letters")
    await reader.close()
    await writer.close()


async def test_the_example_of_a_consumer_is_taken_in(kafka: SecureKafka, trust: Trust, tmp_path: Path) -> None:
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    await ensure_topics(kafka.sasl_url, with_password(trust))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(CONSUMER), "--kafka", kafka.sasl_url, "--history", str(tmp_path / "history.db")),
        *("--ca-file", str(trust.ours.ca_file), "--user", USER, "--password-file", str(tmp_path / "password")),
        *("--until-idle", "1"),
        stderr=asyncio.subprocess.PIPE,
    )
    _, told = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, told.decode()


async def _is_taken_in(url: str, access: KafkaAccess) -> bool:
    why = await why_refused(url, access)
    assert why in (None, LATE)
    return why is None


async def _never(envelope: Envelope) -> None:
    raise AssertionError(f"this was no fact: {envelope}")


@pytest.mark.parametrize(
    ("case", "setting"),
    [
        ("a strange authority", "LUTHIER_KAFKA_CA_FILE"),
        ("another name", "another name than that in LUTHIER_KAFKA_URL"),
        ("a wrong password", "LUTHIER_KAFKA_PASSWORD"),
        ("a wrong password in PLAIN", "LUTHIER_KAFKA_PASSWORD"),
        ("another mechanism", "LUTHIER_KAFKA_SASL_MECHANISM"),
        ("no TLS where there is some", "LUTHIER_KAFKA_SECURITY_PROTOCOL"),
        ("TLS where there is none", "LUTHIER_KAFKA_SECURITY_PROTOCOL"),
        ("no password where one is wanted", "LUTHIER_KAFKA_SECURITY_PROTOCOL"),
        ("no certificate where one is wanted", "LUTHIER_KAFKA_CERT_FILE"),
        ("nobody there", "LUTHIER_KAFKA_URL"),
    ],
)
async def test_what_keeps_kafka_away_is_named(kafka: SecureKafka, trust: Trust, case: str, setting: str) -> None:
    url, access = _wrong(case, kafka, trust)

    async def why() -> str | None:
        with pytest.raises(LuthierError) as refused:
            await ensure_topics(url, access)
        for secret in (PASSWORD, WRONG):
            assert secret not in f"{refused.value!r} {access!r}"
        return None if LATE in str(refused.value) else str(refused.value)

    assert setting in await until(why, what="an answer in time")


@pytest.mark.parametrize("protocol", ["PLAINTEXT", "SSL", "SASL_SSL"])
async def test_a_broker_that_is_silent_is_blamed_on_no_setting_but_its_address(trust: Trust, protocol: str) -> None:
    asked = {"PLAINTEXT": access_of(), "SSL": with_certificate(trust), "SASL_SSL": with_password(trust)}
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"127.0.0.1:{silent.getsockname()[1]}"
        assert await why_refused(url, asked[protocol], limit_s=0.3) == LATE


def _wrong(case: str, kafka: SecureKafka, trust: Trust) -> tuple[str, KafkaAccess]:
    tls = access_of(security_protocol="SSL", ca_file=trust.ours.ca_file)
    match case:
        case "a strange authority":
            return kafka.ssl_url, access_of(security_protocol="SSL", ca_file=trust.strange.ca_file)
        case "another name":
            return kafka.sasl_url.replace("127.0.0.1", "localhost"), with_password(trust)
        case "a wrong password":
            return kafka.sasl_url, with_password(trust, password=WRONG)
        case "a wrong password in PLAIN":
            return kafka.sasl_url, with_password(trust, "PLAIN", WRONG)
        case "another mechanism":
            return kafka.sasl_url, with_password(trust, "SCRAM-SHA-256")
        case "no TLS where there is some":
            return kafka.sasl_url, access_of()
        case "TLS where there is none":
            return kafka.open_url, tls
        case "no password where one is wanted":
            return kafka.sasl_url, tls
        case "no certificate where one is wanted":
            return kafka.ssl_url, tls
        case _:
            return "127.0.0.1:1", tls


async def test_mongodb_over_tls(tls_mongo_url: str, trust: Trust) -> None:
    async with open_mongo(tls_mongo_url, "tls", ca_file=trust.ours.ca_file) as db:
        await db["notes"].insert_one({"_id": "one"})
        assert await db["notes"].find_one({}) == {"_id": "one"}
    by_url = f"{tls_mongo_url}&tls=true&tlsCAFile={trust.ours.ca_file}"
    async with open_mongo(by_url, "tls") as db:
        assert await db["notes"].count_documents({}) == 1


async def test_what_keeps_mongodb_away_is_named(tls_mongo_url: str, trust: Trust, tmp_path: Path) -> None:
    password = urlsplit(tls_mongo_url).password or ""
    stranger = tls_mongo_url.replace(password, WRONG)
    no_certificates = tmp_path / "ca.pem"
    no_certificates.write_text("nothing")
    cases = [
        (tls_mongo_url, trust.strange.ca_file, "LUTHIER_MONGO_CA_FILE"),
        (f"{tls_mongo_url}&tls=true", None, "LUTHIER_MONGO_CA_FILE"),
        (tls_mongo_url, no_certificates, "LUTHIER_MONGO_CA_FILE"),
        (tls_mongo_url, tmp_path / "missing.pem", "LUTHIER_MONGO_CA_FILE"),
        (stranger, trust.ours.ca_file, "LUTHIER_MONGO_URL"),
    ]
    for url, ca_file, setting in cases:
        with pytest.raises(LuthierError, match=setting) as refused:
            async with open_mongo(url, "tls", ca_file=ca_file, timeout_s=2):
                pass
        assert password not in repr(refused.value)
        assert WRONG not in repr(refused.value)


async def test_objects_over_https(https_s3: str, trust: Trust) -> None:
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test-secret", "region_name": "us-east-1"}
    session = aioboto3.Session(**keys)
    async with session.client("s3", endpoint_url=https_s3, verify=str(trust.ours.ca_file)) as client:
        await client.create_bucket(Bucket="luthier")
    ours = S3Access(https_s3, "us-east-1", "test", "test-secret", trust.ours.ca_file)
    async with open_objects("s3://luthier/x", ours) as store:
        await store.check()
        await store.put("a", b"content")
        assert await store.read("a") == b"content"
    strange = S3Access(https_s3, "us-east-1", "test", "test-secret", trust.strange.ca_file)
    async with open_objects("s3://luthier/x", strange) as store:
        with pytest.raises(LuthierError, match="LUTHIER_OBJECTS_CA_FILE"):
            await store.check()


async def test_s3_names_what_it_refuses(real_s3: RealS3) -> None:
    wrong = S3Access(real_s3.endpoint_url, real_s3.region, real_s3.access_key, WRONG)
    async with open_objects("s3://luthier/x", wrong) as store:
        with pytest.raises(SettingError, match="AWS_ACCESS_KEY_ID") as refused:
            await store.check()
        assert WRONG not in repr(refused.value)
    right = S3Access(real_s3.endpoint_url, real_s3.region, real_s3.access_key, real_s3.secret_key)
    async with open_objects("s3://no-such-bucket/x", right) as store:
        with pytest.raises(SettingError, match="LUTHIER_OBJECTS_URL"):
            await store.check()


async def test_a_process_takes_its_secrets_from_files_and_logs_none(
    kafka: SecureKafka, tls_mongo_url: str, trust: Trust, tmp_path: Path
) -> None:
    (tmp_path / "luthier_mongo_url").write_text(f"{tls_mongo_url}\n")
    (tmp_path / "luthier_kafka_password").write_text(f"{PASSWORD}\n")
    status, told = await _migrate(kafka.sasl_url, trust.ours, tmp_path)
    assert status == 0, told
    (tmp_path / "luthier_kafka_password").write_text(WRONG)

    async def why() -> str | None:
        status, refused = await _migrate(kafka.sasl_url, trust.ours, tmp_path)
        assert status == 1
        for secret in (PASSWORD, WRONG, urlsplit(tls_mongo_url).password or "?"):
            assert secret not in told + refused
        return None if LATE in refused else refused

    assert "LUTHIER_KAFKA_PASSWORD" in await until(why, within_s=60, what="an answer in time")


async def _migrate(kafka_url: str, authority: Authority, secrets: Path) -> tuple[int | None, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("LUTHIER_")} | {
        "LUTHIER_SECRETS_DIR": str(secrets),
        "LUTHIER_LOG_LEVEL": "DEBUG",
        "LUTHIER_KAFKA_URL": kafka_url,
        "LUTHIER_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "LUTHIER_KAFKA_SASL_MECHANISM": "PLAIN",
        "LUTHIER_KAFKA_CA_FILE": str(authority.ca_file),
        "LUTHIER_KAFKA_USER": USER,
        "LUTHIER_MONGO_CA_FILE": str(authority.ca_file),
        "LUTHIER_MONGO_DATABASE": "tls_migrated",
        "LUTHIER_OBJECTS_URL": "file:///unused",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "luthier_common.kit.migrate"),
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    told, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, told.decode()
