"""The servers that a room's settings name, opened. `kafka_access` is the third of them."""

from contextlib import AbstractAsyncContextManager

from luthier_common.kit.mongo import Database, open_mongo
from luthier_common.kit.objects import ObjectStore, S3Access, open_objects
from luthier_common.kit.settings import RoomSettings


def open_database(settings: RoomSettings, *, timeout_s: float = 5.0) -> AbstractAsyncContextManager[Database]:
    """As `open_mongo`, which says what it raises."""
    return open_mongo(settings.mongo_url, settings.mongo_database, ca_file=settings.mongo_ca_file, timeout_s=timeout_s)


def open_store(settings: RoomSettings) -> AbstractAsyncContextManager[ObjectStore]:
    """As `open_objects`, which says what it raises."""
    return open_objects(settings.objects_url, S3Access(ca_file=settings.objects_ca_file))
