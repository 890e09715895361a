"""Whether a job could run now, and what is missing if not."""

from collections.abc import Awaitable, Callable

from luthier_api.settings import ApiSettings
from luthier_api.store import PlatformStore
from luthier_common.kit.bases import find_base
from luthier_common.kit.kafka_access import KafkaAccess, why_refused
from luthier_common.kit.mongo import Database, ping
from luthier_common.kit.objects import ObjectStore
from luthier_common.kit.presence import is_present, troubles

Check = Callable[[], Awaitable[str | None]]


class Readiness:
    """The checks of `/readyz`, by name. Each returns None, or what is missing; an error counts as missing."""

    def __init__(self, db: Database, objects: ObjectStore, settings: ApiSettings, access: KafkaAccess) -> None:
        self._db = db
        self._store = PlatformStore(db, node_ttl_s=settings.node_ttl_s)
        self._objects = objects
        self._settings = settings
        self._access = access

    def checks(self) -> dict[str, Check]:
        return {
            "mongo": self._mongo,
            "broker": self._broker,
            "objects": self._object_store,
            "file-validator": self._validator,
            "scheduler": self._scheduler,
            "trainer": self._trainer,
            "inference": self._engine,
        }

    async def _mongo(self) -> str | None:
        await ping(self._db)
        return None

    async def _broker(self) -> str | None:
        return await why_refused(self._settings.kafka_url, self._access)

    async def _object_store(self) -> str | None:
        await self._objects.check()
        return None

    async def _validator(self) -> str | None:
        return None if await is_present(self._db, "file-validator") else "no file-validator is there"

    async def _scheduler(self) -> str | None:
        return None if await self._store.has_scheduler() else "no scheduler is active"

    async def _trainer(self) -> str | None:
        return None if await self._store.has_trainer() else "no trainer node is live"

    async def _engine(self) -> str | None:
        name = self._settings.default_base
        base = await find_base(self._db, name)
        if base is None:
            return f"the base model {name} is not in the catalogue yet: {await self._why_not_prepared()}"
        return None if await self._store.find_engines(base["_id"]) else f"no engine serves {name} yet"

    async def _why_not_prepared(self) -> str:
        """By a code: what the registry's log says more names paths, and this answer is for everybody."""
        said = await troubles(self._db, "registry")
        if not said:
            return "no registry is there"
        if None in said:
            return "a registry is preparing it"
        return f"the registry cannot prepare it ({said[0]}); its log says more"
