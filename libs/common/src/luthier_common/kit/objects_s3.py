"""Objects in S3 or what speaks like it; the one file that knows the S3 client."""

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

import aioboto3
from aiobotocore.config import AioConfig
from botocore.exceptions import BotoCoreError, ClientError

from luthier_common.kit.errors import SettingError
from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.objects import (
    CHUNK_BYTES,
    ObjectExistsError,
    ObjectInfo,
    ObjectMissingError,
    ObjectStore,
    ObjectStoreUnavailableError,
    S3Access,
    Stored,
    finish_first,
)
from luthier_common.kit.objects_s3_upload import (
    MISSING,
    PUT_MARK,
    S3RefusesError,
    Upload,
    cut_parts,
    error_code,
    translated,
)

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

PART_BYTES = 8 * 1024 * 1024
MAX_PUTS = 36
"""At a time in one process; each may wait long for its bytes, and holds those of one part meanwhile. Others wait."""
MAX_SENDS = 8
"""Parts that all of them together have under way."""
MAX_CONNECTIONS = 48
# S3 refuses to copy more than 5 GiB in one call; above this, bytes go through us.
COPY_LIMIT_BYTES = 4 * 1024**3
EMPTY_RANGE = {"416", "InvalidRange"}


@asynccontextmanager
async def open_store(url: str, access: S3Access) -> AsyncIterator[ObjectStore]:
    """The store of an `s3://bucket/prefix` address. Nothing is asked of the server yet."""
    parts = urlsplit(url)
    prefix = unquote(parts.path).strip("/")
    if not parts.netloc:
        raise ValueError("an S3 store is given as s3://bucket/prefix")
    endpoint = access.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = access.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    session = aioboto3.Session(
        aws_access_key_id=access.access_key_id, aws_secret_access_key=access.secret_access_key, region_name=region
    )
    verify = str(access.ca_file) if access.ca_file else None

    def connect() -> AbstractAsyncContextManager["S3Client"]:
        return session.client("s3", endpoint_url=endpoint, verify=verify, config=_config(endpoint))

    async with connect() as client, connect() as reader:
        yield S3Objects(client, reader, parts.netloc, f"{prefix}/" if prefix else "")


def _config(endpoint: str | None) -> AioConfig:
    return AioConfig(
        signature_version="s3v4",
        # Servers that are not Amazon's refuse the newer checksum headers, or store the trailer inside the object.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        connect_timeout=5,
        read_timeout=30,
        max_pool_connections=MAX_CONNECTIONS,
        retries={"mode": "standard", "total_max_attempts": 4},
        s3={"addressing_style": "path"} if endpoint else {},
    )


class S3Objects(ObjectStore):
    """Objects of one bucket below a prefix.

    What is read comes through `reader`, with connections of its own: each is held for as long as whoever reads takes,
    and nothing else waits for it.
    """

    def __init__(
        self,
        client: "S3Client",
        reader: "S3Client",
        bucket: str,
        prefix: str,
        *,
        part_bytes: int = PART_BYTES,
        copy_limit_bytes: int = COPY_LIMIT_BYTES,
    ) -> None:
        self._client = client
        self._reader = reader
        self._bucket = bucket
        self._prefix = prefix
        self._puts = asyncio.Semaphore(MAX_PUTS)
        self._sends = asyncio.Semaphore(MAX_SENDS)
        self._part_bytes = part_bytes
        self._copy_limit_bytes = copy_limit_bytes

    async def check(self) -> None:
        try:
            with translated(self._bucket):
                await self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)
        except S3RefusesError as error:
            raise SettingError(f"{error}: see AWS_ACCESS_KEY_ID and its secret") from error
        except ClientError as error:
            code = error_code(error)
            setting = "LUTHIER_OBJECTS_URL" if code == "NoSuchBucket" else "AWS_ACCESS_KEY_ID and its secret"
            raise SettingError(f"S3 refuses to list the bucket ({code}): see {setting}") from error

    async def sweep(self, older_than: timedelta) -> int:
        before, num_swept = datetime.now(UTC) - older_than, 0
        with translated(self._bucket):
            pages = self._client.get_paginator("list_multipart_uploads")
            async for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix):
                for upload in page.get("Uploads", []):
                    if upload["Initiated"] < before:
                        await self._abort(upload["Key"], upload["UploadId"])
                        num_swept += 1
        return num_swept

    async def _put(self, key: str, chunks: AsyncIterator[bytes], if_absent: bool) -> Stored:
        async with self._puts:
            return await self._put_in_turn(key, chunks, if_absent)

    async def _put_in_turn(self, key: str, chunks: AsyncIterator[bytes], if_absent: bool) -> Stored:
        digest, num_bytes = hashlib.sha256(), 0
        upload = Upload(self._client, self._bucket, self._prefix + key, self._sends)
        try:
            async for part in cut_parts(chunks, self._part_bytes):
                await asyncio.to_thread(digest.update, part)
                num_bytes += len(part)
                if upload.upload_id is None and len(part) < self._part_bytes:
                    await self._finish(upload, upload.put_whole(part, if_absent), if_absent)
                    return Stored(key, num_bytes, digest.hexdigest())
                with translated(key):
                    if upload.upload_id is None:
                        # Cancelled in here, the upload would go on without a name: it is begun in full, then aborted.
                        await finish_first(upload.begin())
                    await upload.send(part)
                del part  # the next one takes its room
            await self._finish(upload, upload.complete(if_absent), if_absent)
        finally:
            await upload.stop()
            if upload.upload_id is not None:
                await finish_first(self._abort(upload.path, upload.upload_id))
        return Stored(key, num_bytes, digest.hexdigest())

    async def _finish(self, upload: Upload, request: Awaitable[None], if_absent: bool) -> None:
        """The request that makes the object. A refusal may mean that its first try, whose answer was lost, did it."""
        try:
            with translated(upload.path):
                await request
            await failpoint("objects_s3.after_complete")
        except (ObjectExistsError, ObjectMissingError) as error:
            mark = await self._mark_of(upload.path)
            if mark == upload.mark:
                return
            if if_absent and mark is not None:
                raise ObjectExistsError(upload.path) from error
            raise ObjectStoreUnavailableError(f"the upload of {upload.path} was disturbed by another") from error

    async def _mark_of(self, path: str) -> str | None:
        with translated(path):
            try:
                found = await self._client.head_object(Bucket=self._bucket, Key=path)
            except ClientError as error:
                if error_code(error) not in MISSING:
                    raise
                return None
        return found["Metadata"].get(PUT_MARK, "")

    async def _abort(self, path: str, upload_id: str) -> None:
        """Best effort: what stays is found by `sweep` and by the bucket's lifecycle rule."""
        with contextlib.suppress(BotoCoreError, ClientError, TimeoutError):
            await asyncio.wait_for(
                self._client.abort_multipart_upload(Bucket=self._bucket, Key=path, UploadId=upload_id), 5
            )

    async def _get(self, key: str, start: int, end: int | None) -> AsyncIterator[bytes]:
        path = self._prefix + key
        with translated(key):
            try:
                if start == 0 and end is None:
                    found = await self._reader.get_object(Bucket=self._bucket, Key=path)
                else:
                    last = "" if end is None else str(end - 1)
                    found = await self._reader.get_object(Bucket=self._bucket, Key=path, Range=f"bytes={start}-{last}")
            except ClientError as error:
                if error_code(error) in EMPTY_RANGE:
                    return
                raise
            async with found["Body"] as body:
                left = found["ContentLength"]
                async for chunk in body.content.iter_chunked(CHUNK_BYTES):
                    left -= len(chunk)
                    yield chunk
            if left:
                raise ObjectStoreUnavailableError(f"{key} ended {left} bytes early")

    async def _head(self, key: str) -> ObjectInfo | None:
        with translated(key):
            try:
                found = await self._client.head_object(Bucket=self._bucket, Key=self._prefix + key)
            except ClientError as error:
                if error_code(error) in MISSING:
                    return None
                raise
        return ObjectInfo(key, found["ContentLength"], found["LastModified"])

    async def _delete(self, key: str) -> None:
        with translated(key), contextlib.suppress(ObjectMissingError):
            await self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key)

    async def _list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        with translated(prefix):
            pages = self._client.get_paginator("list_objects_v2")
            async for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix):
                for found in page.get("Contents", []):
                    if not found["Key"].endswith("/"):
                        key = found["Key"].removeprefix(self._prefix)
                        yield ObjectInfo(key, found["Size"], found["LastModified"])

    async def _copy(self, source: str, target: str) -> None:
        info = await self._head(source)
        if info is None:
            raise ObjectMissingError(source)
        if info.bytes > self._copy_limit_bytes:
            await self._put(target, self._get(source, 0, None), False)
            return
        origin = quote(f"{self._bucket}/{self._prefix}{source}")
        with translated(source):
            await self._client.copy_object(Bucket=self._bucket, Key=self._prefix + target, CopySource=origin)
