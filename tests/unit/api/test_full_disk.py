"""A disk without room is the operator's matter: clients hear so and come again, and it is no fault of the API."""

import errno

import pytest
from litestar import Litestar, post
from litestar.testing import TestClient

from luthier_api.exceptions import handlers


def app_that_meets(number: int) -> Litestar:
    @post("/files", sync_to_thread=False)
    def store() -> None:
        raise OSError(number, "as the disk says")

    return Litestar([store], exception_handlers=handlers(), logging_config=None)


@pytest.mark.parametrize(
    ("number", "status", "code"),
    [(errno.ENOSPC, 503, "storage_full"), (errno.EDQUOT, 503, "storage_full"), (errno.EIO, 500, "internal_error")],
)
def test_a_full_disk_is_told_apart_from_a_fault(number: int, status: int, code: str) -> None:
    with TestClient(app_that_meets(number), raise_server_exceptions=False) as client:
        answer = client.post("/files")
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.headers.get("retry-after") == ("1" if status == 503 else None)
