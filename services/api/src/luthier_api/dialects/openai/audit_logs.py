"""`/v1/organization/audit_logs`, after OpenAI's administration API."""

from typing import Annotated

from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import FromQuery, QueryParameter

from luthier_api.deps import Services
from luthier_api.dialects.openai.organization import refuse_end_user
from luthier_api.domain import Page, Scope
from luthier_api.wire.audit import AuditLogObject, audit_log_object
from luthier_api.wire.lists import ListObject, list_object

MAX_PAGE = 100


class AuditLogsController(Controller):
    path = "/organization/audit_logs"
    tags = ("Organization",)
    guards = (refuse_end_user,)

    @get(operation="list_audit_logs", summary="List who changed what, newest first", scope=Scope.ADMIN)
    async def list(
        self,
        services: NamedDependency[Services],
        after: FromQuery[str | None] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=MAX_PAGE)] = 20,
    ) -> ListObject[AuditLogObject]:
        found = await services.audit_rows.list(Page(limit, after))
        return list_object([audit_log_object(row) for row in found[:limit]], has_more=len(found) > limit)
