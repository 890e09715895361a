"""The embedded mongod: a replica set of one with authentication, on the loopback interface only.

A replica set even with one member, because a standalone mongod loses acknowledged writes when it is killed. Network
compression stays off: this mongod's zlib reader has a known hole (CVE-2025-14847).
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure, PyMongoError

from luthier_stack.ports import remembered_port
from luthier_stack.secret import secret_in

_Client = AsyncMongoClient[dict[str, Any]]
DATABASE = "luthier"
REPLICA_SET = "luthier"
USER = "luthier"
_CACHE_GB = "0.25"
_OPLOG_MB = "256"
_QUIESCE_MS = "100"
_MOVE_TIMEOUT_S = 90.0
_AUTHENTICATION_FAILED = 18
_ALREADY_INITIALIZED = 23


class EmbeddedMongo:
    """One mongod below a home directory: how to start it, how to see that it works, how to reach it."""

    def __init__(self, home: Path, binary: Path) -> None:
        self._folder = home / "mongo"
        (self._folder / "data").mkdir(mode=0o700, parents=True, exist_ok=True)
        self._binary = binary
        self._key_file = self._folder / "key"
        secret_in(self._key_file, num_bytes=512)
        self._password = secret_in(self._folder / "password", num_bytes=24)
        self.port = remembered_port(self._folder / "port")

    @property
    def url(self) -> str:
        """Where clients connect, with the write concern that survives a crash."""
        return (
            f"mongodb://{USER}:{self._password}@127.0.0.1:{self.port}/{DATABASE}"
            f"?authSource=admin&replicaSet={REPLICA_SET}&w=majority&journal=true"
        )

    @property
    def command(self) -> tuple[str, ...]:
        """The command line; nothing is left to a configuration file or the environment."""
        return (
            str(self._binary),
            *("--dbpath", str(self._folder / "data"), "--bind_ip", "127.0.0.1", "--port", str(self.port)),
            *("--replSet", REPLICA_SET, "--keyFile", str(self._key_file), "--nounixsocket"),
            *("--networkMessageCompressors", "disabled", "--wiredTigerCacheSizeGB", _CACHE_GB),
            *("--oplogSize", _OPLOG_MB, "--quiet", "--setParameter", "diagnosticDataCollectionEnabled=false"),
            *("--setParameter", f"shutdownTimeoutMillisForSignaledShutdown={_QUIESCE_MS}"),
        )

    async def is_alive(self) -> bool:
        """Whether mongod answers."""
        return await self._hello() is not None

    async def is_ready(self) -> bool:
        """Whether mongod takes writes."""
        hello = await self._hello()
        return hello is not None and bool(hello.get("isWritablePrimary"))

    async def settle(self) -> bool:
        """Bring a fresh or moved data directory one step towards a replica set with our user; true when it is one.

        "isreplicaset" says that no usable configuration is there: none yet, or one that names the port of another run.
        """
        hello = await self._hello() or {}
        if hello.get("isWritablePrimary"):
            return await self._has_user() or await self._create_user()
        if hello.get("isreplicaset"):
            await (self._move_to_present_port() if await self._has_user() else self._initiate())
        return False

    async def _initiate(self) -> None:
        config = {"_id": REPLICA_SET, "members": [{"_id": 0, "host": self._address}]}
        async with self._connect(authenticated=False) as client:
            try:
                await client.admin.command({"replSetInitiate": config})
            except OperationFailure as error:
                if error.code != _ALREADY_INITIALIZED:
                    raise

    async def _create_user(self) -> bool:
        """Without a user, mongod lets a local client create the first one; later it refuses."""
        async with self._connect(authenticated=False) as client:
            await client.admin.command("createUser", USER, pwd=self._password, roles=["root"])
        return True

    async def _move_to_present_port(self) -> None:
        """The port of the earlier run was taken this time; if its new owner stays mute, mongod takes half a minute."""
        async with self._connect(authenticated=True, timeout_s=_MOVE_TIMEOUT_S) as client:
            config = (await client.admin.command("replSetGetConfig"))["config"]
            if config["members"][0]["host"] == self._address:
                return
            config["version"] += 1
            config["members"][0]["host"] = self._address
            await client.admin.command({"replSetReconfig": config, "force": True})

    async def _has_user(self) -> bool:
        try:
            async with self._connect(authenticated=True) as client:
                await client.admin.command("connectionStatus")
        except OperationFailure as error:
            if error.code == _AUTHENTICATION_FAILED:
                return False
            raise
        return True

    async def _hello(self) -> dict[str, Any] | None:
        try:
            async with self._connect(authenticated=False) as client:
                return await client.admin.command("hello")
        except PyMongoError:
            return None

    @property
    def _address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @asynccontextmanager
    async def _connect(
        self, *, authenticated: bool, timeout_s: float = 2.0
    ) -> AsyncIterator[AsyncMongoClient[dict[str, Any]]]:
        login, source = (f"{USER}:{self._password}@", "authSource=admin") if authenticated else ("", "")
        client: _Client = AsyncMongoClient(
            f"mongodb://{login}{self._address}/?{source}",
            directConnection=True,
            serverSelectionTimeoutMS=1000,
            timeoutMS=int(timeout_s * 1000),
        )
        async with client:
            yield client
