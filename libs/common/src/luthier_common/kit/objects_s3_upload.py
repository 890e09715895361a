"""One write to S3, in one request or in parts with bounded memory, and the client's errors in our words."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import aiohttp
from botocore.exceptions import (
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ResponseStreamingError,
    SSLError,
)
from botocore.exceptions import ConnectionError as S3ConnectionError

from luthier_common.kit.failpoints import failpoint
from luthier_common.kit.objects import ObjectExistsError, ObjectMissingError, ObjectStoreUnavailableError

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client
    from types_aiobotocore_s3.type_defs import CompletedPartTypeDef

PARTS_IN_FLIGHT = 2
PUT_MARK = "luthier-put"
MISSING = {"404", "NoSuchKey", "NotFound", "NoSuchUpload"}
_TAKEN = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict", "OperationAborted"}
_TRANSIENT = {"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling", "TooManyRequests"}
_EXPIRED = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired"}
_NO_ANSWER = (
    S3ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    ResponseStreamingError,
    aiohttp.ClientError,
    TimeoutError,
)


class S3RefusesError(ObjectStoreUnavailableError):
    """Credentials that expired or may not do this: an operator's move, after which the same call succeeds."""


class Upload:
    """One object on its way.

    `upload_id` is set while the server holds parts of it; `mark` tells the object that we made from one by others.
    """

    def __init__(self, client: "S3Client", bucket: str, path: str, sends: asyncio.Semaphore) -> None:
        """`sends` are the turns of all uploads to have a part under way."""
        self._client = client
        self._bucket = bucket
        self._sends = sends
        self._tasks: list[asyncio.Task[str]] = []
        self._etags: list[str] = []
        self.path = path
        self.mark = secrets.token_hex(16)
        self.upload_id: str | None = None

    async def put_whole(self, content: bytes, if_absent: bool) -> None:
        metadata = {PUT_MARK: self.mark}
        if if_absent:
            await self._client.put_object(
                Bucket=self._bucket, Key=self.path, Body=content, Metadata=metadata, IfNoneMatch="*"
            )
        else:
            await self._client.put_object(Bucket=self._bucket, Key=self.path, Body=content, Metadata=metadata)

    async def begin(self) -> None:
        begun = await self._client.create_multipart_upload(
            Bucket=self._bucket, Key=self.path, Metadata={PUT_MARK: self.mark}
        )
        self.upload_id = begun["UploadId"]
        await failpoint("objects_s3.after_begin")

    async def send(self, part: bytes) -> None:
        """Hands over the next part; waits while PARTS_IN_FLIGHT are under way, or others have all turns."""
        if len(self._tasks) == PARTS_IN_FLIGHT:
            await self._collect()
        await self._sends.acquire()
        number = len(self._etags) + len(self._tasks) + 1
        task = asyncio.create_task(self._send_one(number, part))
        task.add_done_callback(lambda _: self._sends.release())
        self._tasks.append(task)

    async def complete(self, if_absent: bool) -> None:
        assert self.upload_id is not None
        while self._tasks:
            await self._collect()
        parts: list[CompletedPartTypeDef] = [
            {"PartNumber": number, "ETag": etag} for number, etag in enumerate(self._etags, 1)
        ]
        await failpoint("objects_s3.before_complete")
        if if_absent:
            # Some servers ignore the condition here (Amazon's does not): with them a race of two remains open.
            await self._refuse_taken()
            await self._client.complete_multipart_upload(
                Bucket=self._bucket,
                Key=self.path,
                UploadId=self.upload_id,
                MultipartUpload={"Parts": parts},
                IfNoneMatch="*",
            )
        else:
            await self._client.complete_multipart_upload(
                Bucket=self._bucket, Key=self.path, UploadId=self.upload_id, MultipartUpload={"Parts": parts}
            )
        self.upload_id = None

    async def _refuse_taken(self) -> None:
        try:
            await self._client.head_object(Bucket=self._bucket, Key=self.path)
        except ClientError as error:
            if error_code(error) not in MISSING:
                raise
        else:
            raise ObjectExistsError(self.path)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _collect(self) -> None:
        self._etags.append(await self._tasks[0])
        self._tasks.pop(0)

    async def _send_one(self, number: int, part: bytes) -> str:
        assert self.upload_id is not None
        sent = await self._client.upload_part(
            Bucket=self._bucket, Key=self.path, UploadId=self.upload_id, PartNumber=number, Body=part
        )
        await failpoint("objects_s3.after_part")
        return sent["ETag"]


async def cut_parts(chunks: AsyncIterator[bytes], part_bytes: int) -> AsyncIterator[bytes]:
    """Full parts, then the rest; an empty rest only where there was nothing at all."""
    pending, num_parts = bytearray(), 0
    async for chunk in chunks:
        pending += chunk
        while len(pending) >= part_bytes:
            with memoryview(pending) as view:
                part = bytes(view[:part_bytes])
            del pending[:part_bytes]
            num_parts += 1
            yield part
            del part  # while the next one comes, nothing of this one is held
    if pending or not num_parts:
        yield bytes(pending)


def error_code(error: ClientError) -> str:
    """What S3 called it: `NoSuchKey`, `412`."""
    return str(error.response.get("Error", {}).get("Code", ""))


@contextmanager
def translated(key: str) -> Iterator[None]:
    """The client's errors as those of the interface; what no waiting can cure (no such bucket) passes as it is."""
    try:
        yield
    except ClientError as error:
        code = error_code(error)
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if code in _TAKEN:
            raise ObjectExistsError(key) from error
        if code in MISSING:
            raise ObjectMissingError(key) from error
        if code in _TRANSIENT or status >= 500 or status == 429:
            raise ObjectStoreUnavailableError(f"S3 answered {code or status}") from error
        if code in _EXPIRED or status in (401, 403):
            raise S3RefusesError(f"S3 refuses access ({code or status})") from error
        raise
    except (NoCredentialsError, CredentialRetrievalError) as error:
        raise S3RefusesError(f"there are no credentials for S3 now: {type(error).__name__}") from error
    except SSLError as error:
        raise ObjectStoreUnavailableError(
            "no trusted TLS with the S3 server: see LUTHIER_OBJECTS_CA_FILE and AWS_ENDPOINT_URL"
        ) from error
    except _NO_ANSWER as error:
        raise ObjectStoreUnavailableError(f"S3 did not answer: {type(error).__name__}") from error
