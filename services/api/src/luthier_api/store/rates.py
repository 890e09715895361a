"""The windows' counts that all api processes share: told by each at most once a second, not for each request."""

from datetime import UTC, datetime

from luthier_api.rates import WINDOW_S, Windows
from luthier_common.kit.mongo import BulkWriteError, Database, upsert_each

COLLECTION = "rate_windows"
_KEPT_WINDOWS = 2


async def share_windows(db: Database, windows: Windows) -> None:
    """Tell what this process has admitted since the last time, and hear the totals. What failed is told again later."""
    number, told = windows.untold()
    if not told:
        return
    over_at = datetime.fromtimestamp((number + _KEPT_WINDOWS) * WINDOW_S, UTC)
    rows = {f"{name}/{number}": name for name in told}
    failure: BulkWriteError | None = None
    try:
        new = {"$setOnInsert": {"expires_at": over_at}}
        await upsert_each(db[COLLECTION], {row: {"$inc": {"count": told[name]}, **new} for row, name in rows.items()})
    except BulkWriteError as error:
        failure = error
        for fault in error.details["writeErrors"]:
            del rows[f"{list(told)[fault['index']]}/{number}"]
    counted = db[COLLECTION].find({"_id": {"$in": list(rows)}}, {"count": 1})
    totals = {rows[row["_id"]]: int(row["count"]) async for row in counted}
    windows.heard(number, {name: told[name] for name in rows.values()}, totals)
    if failure is not None:
        raise failure
