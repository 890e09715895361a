"""The Litestar application: routes, and what lies around them. Pure wiring; nothing is opened here."""

from typing import Any

from litestar import Litestar, Response, Router, get
from litestar.di import NamedDependency, Provide

from luthier_api.around.audit import Auditing
from luthier_api.around.bodies import Bodies
from luthier_api.around.idempotency import Idempotency
from luthier_api.around.rates import RateLimits, add_rate_headers
from luthier_api.deps import DIALECT, AnyRequest, Process, Services
from luthier_api.dialects import openai
from luthier_api.docs import describe_errors_and_uploads, openapi_config
from luthier_api.domain import DialectName
from luthier_api.exceptions import handlers
from luthier_api.middleware import API_VERSIONS, Admission, Authentication, Tracing, add_request_id
from luthier_common.kit.health import Health


@get("/healthz", operation="healthz", summary="Whether this process works", public=True, tags=["Health"])
async def healthz(health: NamedDependency[Health]) -> Response[dict[str, Any]]:
    stale = health.stale()
    return Response({"status": "stale" if stale else "ok", "stale": stale}, status_code=503 if stale else 200)


@get("/readyz", operation="readyz", summary="Whether a job could run now", public=True, tags=["Health"])
async def readyz(health: NamedDependency[Health]) -> Response[dict[str, Any]]:
    missing = await health.missing()
    status = {"status": "not_ready" if missing else "ready", "missing": missing}
    return Response(status, status_code=503 if missing else 200)


FORM_BYTES = 1024 * 1024
"""What a form may hold beside its file."""
AZURE_VERSIONS = ("v1", "latest", "preview")
"""What clients that are set up for Azure's v1 address may send as `api-version`: all mean the same here."""


def mount(path: str, dialect: DialectName, *, is_described: bool = True, api_versions: tuple[str, ...] = ()) -> Router:
    """The routes of a dialect below a path. Dialects differ in spelling, not in what their routes do."""
    opt = {DIALECT: dialect, API_VERSIONS: api_versions}
    return Router(path, route_handlers=openai.CONTROLLERS, opt=opt, include_in_schema=is_described)


def build_app(process: Process) -> Litestar:
    """The application over what the process has open."""
    around, settings = process.around, process.settings

    def services_of(request: AnyRequest) -> Services:
        return Services(process, request)

    app = Litestar(
        route_handlers=[
            mount("/v1", "openai"),
            mount("/openai/v1", "openai", is_described=False, api_versions=AZURE_VERSIONS),
            mount("/api/v1/llm", "mka1"),
            healthz,
            readyz,
        ],
        dependencies={
            "services": Provide(services_of, sync_to_thread=False),
            "health": Provide(lambda: process.health, sync_to_thread=False),
        },
        middleware=[
            Tracing(),
            Auditing(around.audit_log, around.refused),
            Authentication(process.keys, around.failed),
            RateLimits(around.windows, settings.requests_per_minute),
            Admission(),
            Bodies(form_s=settings.upload_timeout_s, other_s=settings.json_timeout_s),
            Idempotency(
                around.reservations,
                around.connections,
                process.clock,
                most_bytes=max(settings.max_file_bytes, settings.max_part_bytes) + FORM_BYTES,
            ),
        ],
        before_send=[add_request_id, add_rate_headers],
        exception_handlers=handlers(),
        openapi_config=openapi_config(),
        request_max_body_size=settings.max_json_bytes,
        logging_config=None,
        debug=False,
    )
    describe_errors_and_uploads(app.openapi_schema)
    return app
