"""One contract over three stores: a directory, moto's S3 and a real S3 server."""

import asyncio
import hashlib
import os
import resource
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aioboto3
import pytest
from moto.server import ThreadedMotoServer

from builders.waiting import until
from luthier_common.kit.errors import TransientError
from luthier_common.kit.objects import (
    ObjectExistsError,
    ObjectMissingError,
    ObjectStore,
    ObjectStoreUnavailableError,
    S3Access,
    open_objects,
)
from luthier_common.kit.objects_s3 import MAX_CONNECTIONS, MAX_PUTS, MAX_SENDS, PART_BYTES, S3Objects

BUCKET = "luthier-test"
# Neither S3 here knows when an upload began: moto says 2010, the other says now.
WHATEVER_AGE = timedelta(minutes=-1)
OpenStore = Callable[[], Any]


@pytest.fixture(scope="session")
def moto_s3() -> Any:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield S3Access(f"http://{host}:{port}", "us-east-1", "test", "test-secret")
    server.stop()


@pytest.fixture(scope="module", params=["file", "moto", "real"])
def access(request: pytest.FixtureRequest) -> S3Access | None:
    """How to reach the store; None is the directory."""
    return None if request.param == "file" else _access(request)


@pytest.fixture(params=["moto", "real"])
def s3_access(request: pytest.FixtureRequest) -> S3Access:
    return _access(request)


@pytest.fixture
async def s3_place(s3_access: S3Access) -> tuple[str, S3Access]:
    return await _bucket(s3_access)


def _access(request: pytest.FixtureRequest) -> S3Access:
    found: Any = request.getfixturevalue("moto_s3" if request.param == "moto" else "real_s3")
    if isinstance(found, S3Access):
        return found
    return S3Access(found.endpoint_url, found.region, found.access_key, found.secret_key)


async def _bucket(access: S3Access) -> tuple[str, S3Access]:
    async with _client(access) as client:
        found = await client.list_buckets()
        if BUCKET not in {bucket["Name"] for bucket in found["Buckets"]}:
            await client.create_bucket(Bucket=BUCKET)
    return f"s3://{BUCKET}/p-{os.urandom(4).hex()}/below", access


def _client(access: S3Access) -> Any:
    session = aioboto3.Session(access.access_key_id, access.secret_access_key, region_name=access.region)
    return session.client("s3", endpoint_url=access.endpoint_url)


@pytest.fixture(scope="module")
async def opened(access: S3Access | None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ObjectStore]:
    """One store of each kind for all tests: opening S3 takes longer than most of them."""
    place = (f"file://{tmp_path_factory.mktemp('objects')}", None) if access is None else await _bucket(access)
    async with open_objects(*place) as store:
        yield store


@pytest.fixture
async def store(opened: ObjectStore) -> AsyncIterator[ObjectStore]:
    """It is empty, and emptied afterwards."""
    yield opened
    for key in await _keys(opened):
        await opened.delete(key)
    await opened.sweep(WHATEVER_AGE)


async def _chunks(content: bytes, size: int = 300_000) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def _all(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def _keys(store: ObjectStore, prefix: str = "") -> list[str]:
    return sorted([info.key async for info in store.list(prefix)])


async def test_what_is_put_is_read_back_with_its_size_and_digest(store: ObjectStore) -> None:
    content = "ein Stück Text".encode()
    stored = await store.put("jobs/ftjob-1/spec.json", content)
    assert stored.bytes == len(content)
    assert stored.key == "jobs/ftjob-1/spec.json"
    assert stored.sha256 == hashlib.sha256(content).hexdigest()
    assert await store.read("jobs/ftjob-1/spec.json") == content
    info = await store.head("jobs/ftjob-1/spec.json")
    assert info is not None
    assert (info.key, info.bytes) == ("jobs/ftjob-1/spec.json", len(content))
    assert abs(info.modified_at - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.parametrize("size", [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES + 17])
async def test_any_size_streams_through(store: ObjectStore, size: int) -> None:
    content = os.urandom(1 + size // 1000)[:size] * 1001
    content = content[:size]
    stored = await store.put("large/object", _chunks(content))
    assert (stored.bytes, stored.sha256) == (size, hashlib.sha256(content).hexdigest())
    assert hashlib.sha256(await _all(store.get("large/object"))).hexdigest() == stored.sha256


async def test_a_second_put_replaces(store: ObjectStore) -> None:
    await store.put("a/b", b"first")
    await store.put("a/b", b"second")
    assert await store.read("a/b") == b"second"


@pytest.mark.parametrize("size", [5, PART_BYTES + 5])
async def test_a_conditional_put_never_replaces(store: ObjectStore, size: int) -> None:
    content = b"x" * size
    await store.put("once", _chunks(content), if_absent=True)
    with pytest.raises(ObjectExistsError):
        await store.put("once", _chunks(b"y" * size), if_absent=True)
    assert await _all(store.get("once", end=3)) == b"xxx"


async def test_one_of_many_conditional_puts_wins(store: ObjectStore, request: pytest.FixtureRequest) -> None:
    """S3Proxy looks first and writes then: with it, a race may have several winners, and the last one's bytes stay."""
    results = await asyncio.gather(
        *(store.put("claims/winner", str(n).encode(), if_absent=True) for n in range(8)), return_exceptions=True
    )
    winners = [n for n, result in enumerate(results) if not isinstance(result, BaseException)]
    checks_atomically = request.node.callspec.params["access"] != "real"
    assert len(winners) == 1 or (winners and not checks_atomically), results
    assert all(isinstance(r, ObjectExistsError) for n, r in enumerate(results) if n not in winners)
    assert await store.read("claims/winner") in {str(n).encode() for n in winners}
    with pytest.raises(ObjectExistsError):
        await store.put("claims/winner", b"late", if_absent=True)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0, None, b"0123456789"), (3, None, b"3456789"), (0, 4, b"0123"), (3, 5, b"34"), (4, 4, b""), (8, 99, b"89")],
)
async def test_ranges(store: ObjectStore, start: int, end: int | None, expected: bytes) -> None:
    await store.put("digits", b"0123456789")
    assert await _all(store.get("digits", start=start, end=end)) == expected


async def test_a_range_behind_the_end_is_empty(store: ObjectStore) -> None:
    await store.put("digits", b"0123456789")
    assert await _all(store.get("digits", start=10)) == b""
    assert await _all(store.get("digits", start=50, end=60)) == b""


async def test_a_range_that_runs_backwards_is_refused(store: ObjectStore) -> None:
    with pytest.raises(ValueError, match="range"):
        store.get("digits", start=5, end=2)


async def test_what_is_missing_is_said_to_be_missing(store: ObjectStore) -> None:
    assert await store.head("no/such") is None
    with pytest.raises(ObjectMissingError):
        await store.read("no/such")
    with pytest.raises(ObjectMissingError):
        await store.copy("no/such", "other")
    assert await store.head("other") is None


async def test_reading_whole_has_a_limit(store: ObjectStore) -> None:
    await store.put("big", b"x" * 101)
    with pytest.raises(ValueError, match="larger than 100"):
        await store.read("big", limit_bytes=100)


async def test_deleting_twice_is_fine(store: ObjectStore) -> None:
    await store.put("a/b/c", b"1")
    await store.delete("a/b/c")
    await store.delete("a/b/c")
    await store.delete("never/was")
    assert await store.head("a/b/c") is None
    assert await _keys(store) == []


async def test_listing_goes_by_any_prefix(store: ObjectStore) -> None:
    for key in ("jobs/ftjob-1/a", "jobs/ftjob-1/b/c", "jobs/ftjob-12/a", "files/x"):
        await store.put(key, b"12")
    assert await _keys(store) == ["files/x", "jobs/ftjob-1/a", "jobs/ftjob-1/b/c", "jobs/ftjob-12/a"]
    assert await _keys(store, "jobs/ftjob-1/") == ["jobs/ftjob-1/a", "jobs/ftjob-1/b/c"]
    assert await _keys(store, "jobs/ftjob-1") == ["jobs/ftjob-1/a", "jobs/ftjob-1/b/c", "jobs/ftjob-12/a"]
    assert await _keys(store, "nothing/") == []
    assert {info.bytes async for info in store.list("jobs/")} == {2}


async def test_a_copy_is_its_own_object(store: ObjectStore) -> None:
    content = os.urandom(PART_BYTES + 3)
    await store.put("staging/adapter.safetensors", content)
    await store.copy("staging/adapter.safetensors", "models/m:1/adapter.safetensors")
    await store.delete("staging/adapter.safetensors")
    assert await _all(store.get("models/m:1/adapter.safetensors")) == content


async def test_files_go_up_and_come_down(store: ObjectStore, tmp_path: Path) -> None:
    content = os.urandom(2_500_000)
    (tmp_path / "up").write_bytes(content)
    stored = await store.upload(tmp_path / "up", "runs/log")
    assert stored.sha256 == hashlib.sha256(content).hexdigest()
    assert await store.download("runs/log", tmp_path / "down") == stored.sha256
    assert (tmp_path / "down").read_bytes() == content


async def test_a_failed_download_leaves_no_file(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(ObjectMissingError):
        await store.download("no/such", tmp_path / "down")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []


@pytest.mark.parametrize("size", [1000, 2 * PART_BYTES + 1000])
async def test_a_source_that_fails_leaves_nothing(store: ObjectStore, size: int) -> None:
    async def breaks() -> AsyncIterator[bytes]:
        async for chunk in _chunks(b"z" * size):
            yield chunk
        raise ConnectionResetError("the client went away")

    with pytest.raises(ConnectionResetError):
        await store.put("half/done", breaks())
    assert await store.head("half/done") is None
    assert await _keys(store) == []
    assert await store.sweep(WHATEVER_AGE) == 0


async def test_a_cancelled_put_leaves_nothing(store: ObjectStore) -> None:
    sent = asyncio.Event()

    async def stalls() -> AsyncIterator[bytes]:
        yield b"z" * (PART_BYTES + 1)
        sent.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(store.put("half/done", stalls()))
    await asyncio.wait_for(sent.wait(), 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await store.head("half/done") is None
    assert await store.sweep(WHATEVER_AGE) == 0


@pytest.mark.parametrize(
    "key",
    ["", "/etc/passwd", "../up", "a/../b", "a//b", "a/", "./a", "a/.hidden", "a b", "a\nb", "a\\b", "ü", "k" * 901],
)
async def test_bad_keys_are_refused_everywhere(store: ObjectStore, key: str, tmp_path: Path) -> None:
    for call in (
        lambda: store.put(key, b""),
        lambda: store.read(key),
        lambda: store.head(key),
        lambda: store.delete(key),
        lambda: store.copy(key, "fine"),
        lambda: store.copy("fine", key),
        lambda: store.download(key, tmp_path / "x"),
    ):
        with pytest.raises(ValueError, match="not an object key"):
            await call()
    with pytest.raises(ValueError, match="not an object key"):
        store.get(key)


async def test_a_prefix_cannot_leave_the_store(store: ObjectStore) -> None:
    with pytest.raises(ValueError, match="not an object key"):
        store.list("../")


async def test_the_store_says_that_it_answers(store: ObjectStore) -> None:
    await store.check()


@pytest.mark.parametrize("url", ["http://x/y", "objects", "file://relative/path", "s3:///no-bucket"])
async def test_a_bad_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"file:///|s3://"):
        async with open_objects(url):
            pass


async def test_a_directory_is_private_and_holds_no_leftovers(tmp_path: Path) -> None:
    async with open_objects(f"file://{tmp_path}/objects") as store:
        await store.put("a/b", b"1")
        folders = [tmp_path / "objects", *(p for p in (tmp_path / "objects").rglob("*") if p.is_dir())]
        assert {folder.stat().st_mode & 0o777 for folder in folders} == {0o700}
        assert (tmp_path / "objects/a/b").stat().st_mode & 0o077 == 0
        (tmp_path / "objects/.unfinished/.part-dead").write_bytes(b"left by a killed writer")
        assert await _keys(store) == ["a/b"]
        assert await store.sweep(timedelta(hours=1)) == 0
        assert await store.sweep(WHATEVER_AGE) == 1


async def test_a_key_cannot_lie_below_another(tmp_path: Path) -> None:
    async with open_objects(f"file://{tmp_path}/objects") as store:
        await store.put("a/b", b"1")
        for key in ("a/b/c", "a"):
            for if_absent in (True, False):
                with pytest.raises(ValueError, match="another key"):
                    await store.put(key, b"2", if_absent=if_absent)
        assert await store.head("a") is None
        assert await store.head("a/b/c") is None
        with pytest.raises(ObjectMissingError):
            await store.read("a")
        await store.delete("a")
        assert await _keys(store) == ["a/b"]


@asynccontextmanager
async def _s3(place: tuple[str, S3Access], **limits: int) -> AsyncIterator[S3Objects]:
    url, access = place
    async with _client(access) as client:
        yield S3Objects(client, client, BUCKET, url.removeprefix(f"s3://{BUCKET}/") + "/", **limits)


async def test_what_is_too_large_for_one_copy_request_is_copied_all_the_same(s3_place: tuple[str, S3Access]) -> None:
    async with _s3(s3_place, copy_limit_bytes=1000) as store:
        await store.put("a", b"x" * 5000)
        await store.copy("a", "b")
        assert await store.read("b") == b"x" * 5000


async def test_parts_that_a_killed_writer_left_are_swept(s3_place: tuple[str, S3Access]) -> None:
    url, access = s3_place
    path = url.removeprefix(f"s3://{BUCKET}/")
    async with _client(access) as client:
        begun = await client.create_multipart_upload(Bucket=BUCKET, Key=f"{path}/dead")
        await client.upload_part(Bucket=BUCKET, Key=f"{path}/dead", UploadId=begun["UploadId"], PartNumber=1, Body=b"x")
        async with open_objects(url, access) as store:
            assert await store.sweep(WHATEVER_AGE) == 1
            assert await store.sweep(WHATEVER_AGE) == 0


async def test_a_conditional_put_whose_answer_was_lost_is_known_as_ours(moto_s3: S3Access) -> None:
    """The proxy lets the first put through and drops the answer; the client's own retry then meets the new object."""
    async with _client(moto_s3) as client:
        await client.create_bucket(Bucket="lost-answers")
    async with (
        _losing_proxy(moto_s3, b"PUT /lost-answers/once") as access,
        open_objects("s3://lost-answers", access) as store,
    ):
        await store.put("once", b"mine", if_absent=True)
        with pytest.raises(ObjectExistsError):
            await store.put("once", b"other", if_absent=True)
        assert await store.read("once") == b"mine"


async def test_who_reads_slowly_keeps_nobody_from_writing(s3_place: tuple[str, S3Access]) -> None:
    """Each reader holds a connection until it has read on; there are as many as reading may have."""
    async with open_objects(*s3_place) as store, AsyncExitStack() as reading:
        await store.put("large", b"x" * (4 * PART_BYTES))
        for _ in range(MAX_CONNECTIONS):
            chunks = await reading.enter_async_context(aclosing(store.get("large")))  # type: ignore[type-var]
            assert await anext(chunks)
        async with asyncio.timeout(30):
            await store.put("small", b"written")
            assert await store.head("small") is not None
            await store.check()


async def test_no_more_is_taken_from_writers_than_there_is_memory_for(s3_place: tuple[str, S3Access]) -> None:
    """One writer more than may be waits with its first byte until another is through; its own sender waits too."""
    async with open_objects(*s3_place) as store:
        begun: list[str] = []
        goes_on = asyncio.Event()

        async def slowly(key: str) -> AsyncIterator[bytes]:
            begun.append(key)
            yield b"x"
            await goes_on.wait()

        writers = [asyncio.create_task(store.put(f"k{n}", slowly(f"k{n}"))) for n in range(MAX_PUTS + 1)]
        await until(lambda: _said(len(begun) == MAX_PUTS))
        writers[0].cancel()
        await until(lambda: _said(len(begun) == MAX_PUTS + 1), what="the last one's turn")
        goes_on.set()
        await asyncio.gather(*writers[1:])
        assert len(await _keys(store)) == MAX_PUTS


async def test_parts_of_many_writers_are_sent_in_turns_and_all_arrive(s3_place: tuple[str, S3Access]) -> None:
    async with _s3(s3_place, part_bytes=PART_BYTES) as store:
        content = b"y" * (2 * PART_BYTES + 1)
        stored = await asyncio.gather(*(store.put(f"w{n}", _chunks(content)) for n in range(MAX_SENDS // 2 + 2)))
        assert {one.sha256 for one in stored} == {hashlib.sha256(content).hexdigest()}


async def _said(is_so: bool) -> bool:
    return is_so


async def test_a_server_that_is_away_is_a_transient_error(free_port: Callable[[], int]) -> None:
    access = S3Access(f"http://127.0.0.1:{free_port()}", "us-east-1", "test", "test-secret")
    async with open_objects(f"s3://{BUCKET}", access) as store:
        with pytest.raises(ObjectStoreUnavailableError) as caught:
            await store.read("any")
        assert isinstance(caught.value, TransientError)
        with pytest.raises(ObjectStoreUnavailableError):
            await store.check()


async def test_memory_stays_bounded_while_a_large_object_streams(tmp_path: Path) -> None:
    """On the directory store, since moto keeps what it gets in this very process."""

    async def zeros() -> AsyncIterator[bytes]:
        for _ in range(300):
            yield bytes(1024 * 1024)

    async with open_objects(f"file://{tmp_path}/objects") as store:
        await store.put("warm", b"")
        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        await store.put("large", zeros())
        assert await store.download("large", tmp_path / "copy")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 64 * 1024


def test_credentials_are_not_shown() -> None:
    assert "hidden-value" not in repr(S3Access(secret_access_key="hidden-value"))


@asynccontextmanager
async def _losing_proxy(target: S3Access, request: bytes) -> AsyncIterator[S3Access]:
    """Passes bytes on; the first connection that carries `request` is cut when the server has answered."""
    host, port = str(target.endpoint_url).removeprefix("http://").split(":")
    lost = False

    serving: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal lost
        serving.add(asyncio.current_task())  # type: ignore[arg-type]
        server_reader, server_writer = await asyncio.open_connection(host, int(port))
        asked = b""

        async def there() -> None:
            nonlocal asked
            while data := await reader.read(65536):
                asked += data
                server_writer.write(data)
                await server_writer.drain()

        passing = asyncio.create_task(there())
        try:
            while data := await server_reader.read(65536):
                if not lost and request in asked and b"HTTP/1.1 200" in data:
                    lost = True
                    break
                writer.write(data)
        finally:
            passing.cancel()
            server_writer.close()
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield S3Access(
            f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}",
            target.region,
            target.access_key_id,
            target.secret_access_key,
        )
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
