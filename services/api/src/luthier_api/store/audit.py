"""Reading the audit log of one organisation."""

from luthier_api.audit import COLLECTION
from luthier_api.domain import Page, Principal
from luthier_api.errors import bad_cursor
from luthier_common.kit.mongo import Database, Doc


class AuditReader:
    """Rows of the principal's own organisation, of all its projects."""

    def __init__(self, db: Database, principal: Principal) -> None:
        self._rows = db[COLLECTION]
        self._org = principal.org

    async def list(self, page: Page) -> list[Doc]:
        """One more than the page holds, if there are more; newest first."""
        query: Doc = {"org": self._org}
        if page.after is not None:
            last = await self._rows.find_one({"_id": page.after, "org": self._org}, {"at": 1})
            if last is None:
                raise bad_cursor("an item of this list")
            query["$or"] = [{"at": {"$lt": last["at"]}}, {"at": last["at"], "_id": {"$lt": last["_id"]}}]
        found = self._rows.find(query).sort([("at", -1), ("_id", -1)])
        return await found.limit(page.limit + 1).to_list(page.limit + 1)
