"""What a request needs, made from what the process has: one small factory for each service."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from litestar import Request
from litestar.di import Provide

from luthier_api.domain import DialectName, Principal, View
from luthier_api.keys import KeyRing
from luthier_api.middleware import request_id_of
from luthier_api.services.engines import Engines
from luthier_api.services.events import EventService
from luthier_api.services.files import FileService
from luthier_api.services.jobs import JobService
from luthier_api.services.models import ModelService
from luthier_api.settings import ApiSettings
from luthier_api.store import PlatformStore, Repository
from luthier_common.kit.clock import Clock
from luthier_common.kit.generation import GenerationClient
from luthier_common.kit.health import Health
from luthier_common.kit.mongo import Database
from luthier_common.kit.objects import ObjectStore

DIALECT = "dialect"
STRICT_HEADER = "x-luthier-strict"
AnyRequest = Request[Principal, Any, Any]


@dataclass(frozen=True)
class Process:
    """What one api process holds open."""

    settings: ApiSettings
    db: Database
    objects: ObjectStore
    clock: Clock
    keys: KeyRing
    generation: GenerationClient
    health: Health


def providers(process: Process) -> dict[str, Provide]:
    """The services as handlers name them. None can be had without a principal."""
    settings, db, objects, clock = process.settings, process.db, process.objects, process.clock
    engines = Engines(PlatformStore(db, node_ttl_s=settings.node_ttl_s), process.generation)

    def repository(request: AnyRequest) -> Repository:
        return Repository(db, request.user, request_id_of(request.scope))

    def files(request: AnyRequest) -> FileService:
        return FileService(repository(request), db, objects, clock, settings)

    def jobs(request: AnyRequest) -> JobService:
        return JobService(repository(request), db, clock, settings)

    def events(request: AnyRequest) -> EventService:
        return EventService(repository(request))

    def models(request: AnyRequest) -> ModelService:
        return ModelService(repository(request), db)

    def view(request: AnyRequest) -> View:
        dialect: DialectName = request.route_handler.opt.get(DIALECT, "openai")
        return View(dialect, is_strict=request.headers.get(STRICT_HEADER, "").lower() == "true")

    def serving() -> Engines:
        return engines

    made: dict[str, Callable[..., Any]] = {
        "view": view,
        "files": files,
        "jobs": jobs,
        "job_events": events,
        "models": models,
        "engines": serving,
    }
    return {name: Provide(make, sync_to_thread=False) for name, make in made.items()}
