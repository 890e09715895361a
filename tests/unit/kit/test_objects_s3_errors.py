"""What S3 answers, in the words of the interface: what passes is waited out, what no waiting cures is not."""

import pytest
from botocore.exceptions import ClientError, NoCredentialsError

from luthier_common.kit.errors import TransientError
from luthier_common.kit.objects import ObjectMissingError
from luthier_common.kit.objects_s3_upload import translated


def raise_translated(code: str, status: int) -> None:
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    with translated("key"):
        raise ClientError(answer, "GetObject")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("ExpiredToken", 400),
        ("InvalidToken", 400),
        ("AccessDenied", 403),
        ("SignatureDoesNotMatch", 403),
        ("RequestTimeTooSkewed", 403),
        ("403", 403),
        ("Unauthorized", 401),
        ("SlowDown", 503),
        ("TooManyRequests", 429),
    ],
)
def test_credentials_and_load_are_an_operators_matter_and_pass(code: str, status: int) -> None:
    with pytest.raises(TransientError, match=code):
        raise_translated(code, status)


def test_credentials_that_cannot_be_had_now_may_be_had_later() -> None:
    with pytest.raises(TransientError, match="NoCredentialsError"), translated("key"):
        raise NoCredentialsError


def test_what_is_not_there_stays_so() -> None:
    with pytest.raises(ClientError, match="NoSuchBucket"):
        raise_translated("NoSuchBucket", 404)
    with pytest.raises(ObjectMissingError):
        raise_translated("NoSuchKey", 404)
