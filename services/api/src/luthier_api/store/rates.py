"""The windows' counts that all api processes share: told by each at most once a second, not for each request."""

import asyncio
from datetime import UTC, datetime

from luthier_api.rates import WINDOW_S, Windows
from luthier_common.kit.mongo import AFTER, Database

COLLECTION = "rate_windows"
_KEPT_WINDOWS = 2


async def share_windows(db: Database, windows: Windows) -> None:
    """Tell what this process has admitted since the last time, and hear the totals. What failed is told again later."""
    number, told = windows.untold()
    if not told:
        return
    over_at = datetime.fromtimestamp((number + _KEPT_WINDOWS) * WINDOW_S, UTC)

    async def tell(name: str, num_admitted: int) -> tuple[str, int]:
        row = await db[COLLECTION].find_one_and_update(
            {"_id": f"{name}/{number}"},
            {"$inc": {"count": num_admitted}, "$setOnInsert": {"expires_at": over_at}},
            upsert=True,
            return_document=AFTER,
        )
        assert row is not None
        return name, int(row["count"])

    telling = (tell(name, num_admitted) for name, num_admitted in told.items())
    answers = await asyncio.gather(*telling, return_exceptions=True)
    totals = dict(answer for answer in answers if not isinstance(answer, BaseException))
    windows.heard(number, {name: told[name] for name in totals}, totals)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
