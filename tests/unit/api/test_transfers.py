"""Slow clients of one organisation leave places for the files of all others."""

import asyncio
from contextlib import AsyncExitStack, ExitStack

import pytest

from luthier_api import transfers
from luthier_api.domain import Principal
from luthier_api.errors import ApiError
from luthier_api.transfers import MAX_DOWNLOADS, MAX_UPLOADS, Downloads, Uploads
from luthier_common.kit.objects_s3 import MAX_CONNECTIONS, MAX_PUTS

THIRD = 12
AT_ONCE = 8


def someone(org: str, key: str, end_user: str | None = None) -> Principal:
    return Principal(f"key-{org}-{key}", org, org, "proj", "owner", frozenset(), end_user)


async def test_an_organisation_whose_uploads_stand_still_keeps_no_other_waiting() -> None:
    uploads = Uploads(AT_ONCE)
    async with AsyncExitStack() as slow:
        for number in range(THIRD):
            await slow.enter_async_context(uploads.place(someone("slow", str(number // AT_ONCE))))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), uploads.place(someone("slow", "another")):
                pass
        for number in range(MAX_UPLOADS - THIRD):
            await slow.enter_async_context(uploads.place(someone(f"org-{number}", "a")))


async def test_an_end_user_keeps_no_other_of_the_same_key_waiting() -> None:
    uploads = Uploads(1)
    async with uploads.place(someone("a", "k", "ann")), asyncio.timeout(1), uploads.place(someone("a", "k", "bob")):
        pass


async def test_who_waits_in_vain_is_told_so_and_the_place_is_free_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "WAIT_S", 0.05)
    uploads, who = Uploads(1), someone("a", "k")
    for _ in range(2):
        async with uploads.place(who):
            with pytest.raises(ApiError) as caught:
                async with uploads.place(who):
                    pass
        assert (caught.value.status, caught.value.error.code) == (429, "too_many_uploads")
        assert int(caught.value.headers["retry-after"]) > 0


def test_an_organisation_that_reads_slowly_leaves_places_for_others() -> None:
    downloads = Downloads(AT_ONCE)
    with ExitStack() as slow:
        for number in range(THIRD):
            slow.enter_context(downloads.place(someone("slow", str(number // AT_ONCE))))
        with pytest.raises(ApiError), downloads.place(someone("slow", "another")):
            pass
        with downloads.place(someone("other", "a")):
            pass


def test_nobody_who_has_a_place_waits_for_the_store() -> None:
    """There, the time of a request would run."""
    assert MAX_UPLOADS <= MAX_PUTS
    assert MAX_DOWNLOADS < MAX_CONNECTIONS
