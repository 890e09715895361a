"""The same story on a real Apache Kafka and a real S3 server."""

from pathlib import Path

import aioboto3
from botocore.config import Config

from builders.workshop import stack_settings, wait_ready, workshop_of
from conftest import RealS3
from luthier_stack.stack import Stack

BUCKET = "luthier-e2e"


async def test_a_job_on_kafka_and_s3_ends_in_an_answering_model(
    tmp_path: Path, tiny_base: Path, rows: Path, real_kafka_url: str, real_s3: RealS3
) -> None:
    env = {
        "AWS_ENDPOINT_URL": real_s3.endpoint_url,
        "AWS_ACCESS_KEY_ID": real_s3.access_key,
        "AWS_SECRET_ACCESS_KEY": real_s3.secret_key,
        "AWS_REGION": real_s3.region,
    }
    await _make_bucket(real_s3)
    settings = stack_settings(
        tmp_path / "home", tiny_base, kafka_url=real_kafka_url, objects_url=f"s3://{BUCKET}/luthier", **env
    )
    async with Stack(settings) as stack:
        await wait_ready(stack)
        assert "tansu" not in stack.processes
        async with workshop_of(stack) as workshop:
            job = await workshop.ended((await workshop.create(rows)).id)
            assert job.status == "succeeded", job.error
            assert job.fine_tuned_model is not None
            await workshop.assert_told_exactly(job.id)
            assert await workshop.ask(job.fine_tuned_model)


async def _make_bucket(server: RealS3) -> None:
    session = aioboto3.Session(
        aws_access_key_id=server.access_key, aws_secret_access_key=server.secret_key, region_name=server.region
    )
    async with session.client("s3", endpoint_url=server.endpoint_url, config=Config(signature_version="s3v4")) as s3:
        await s3.create_bucket(Bucket=BUCKET)
