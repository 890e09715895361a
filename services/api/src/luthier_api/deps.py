"""What a request needs, made from what the process has: one small factory for each service."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from inspect import iscoroutinefunction
from typing import Any

from litestar import Request
from litestar.di import NamedDependency, Provide

from luthier_api.around.idempotency import CORE, DONE_BEFORE, REPEAT
from luthier_api.around.process import Around
from luthier_api.domain import DialectName, Principal, Scope, View
from luthier_api.idempotency import read_retry
from luthier_api.keys import KeyRing
from luthier_api.middleware import key_of, request_id_of
from luthier_api.services.api_keys import KeyService
from luthier_api.services.creation import JobCreation, Sent
from luthier_api.services.deletion import JobDeletion
from luthier_api.services.engines import Engines
from luthier_api.services.events import EventService
from luthier_api.services.files import FileService
from luthier_api.services.follow import Followers, FollowService
from luthier_api.services.jobs import JobService
from luthier_api.services.models import ModelService
from luthier_api.services.permissions import PermissionService
from luthier_api.services.responses import Again, ResponseService
from luthier_api.services.tenancy import TenancyService
from luthier_api.services.uploads import UploadService
from luthier_api.services.validation import ValidationService
from luthier_api.settings import ApiSettings
from luthier_api.store import PlatformStore, Repository
from luthier_api.store.audit import AuditReader
from luthier_api.store.capacity import CapacityStore
from luthier_api.store.events import Heads
from luthier_api.store.responses import ResponseStore
from luthier_api.store.tenancy import Directory
from luthier_api.turns import Turns
from luthier_api.upload import Upload
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
    followers: Followers = field(default_factory=Followers)

    @cached_property
    def around(self) -> Around:
        return Around(self.db, self.clock, self.settings)


def providers(process: Process) -> dict[str, Provide]:
    """The services as handlers name them. None can be had without a principal."""
    settings, db, objects, clock = process.settings, process.db, process.objects, process.clock

    def repository(request: AnyRequest) -> Repository:
        return Repository(db, request.user, request_id_of(request.scope))

    def files(request: AnyRequest) -> FileService:
        return FileService(repository(request), db, objects, clock, settings)

    def uploads(request: AnyRequest) -> UploadService:
        return UploadService(repository(request), db, objects, clock, settings)

    def form(request: AnyRequest) -> Upload:
        kind = request.headers.get("content-type", "")
        return Upload(kind, request.stream(), within_s=settings.upload_timeout_s)

    def jobs(request: AnyRequest) -> JobService:
        return JobService(repository(request), process.around.bases, settings)

    def view(request: AnyRequest) -> View:
        dialect: DialectName = request.route_handler.opt.get(DIALECT, "openai")
        asked = request.headers.get(STRICT_HEADER)
        return View(dialect, is_strict=request.user.is_strict if asked is None else asked.lower() == "true")

    def validation(request: AnyRequest) -> ValidationService:
        return ValidationService(jobs(request), objects, settings)

    def capacity(request: AnyRequest) -> CapacityStore:
        return CapacityStore(repository(request), node_ttl_s=settings.node_ttl_s)

    made: dict[str, Callable[..., Any]] = {
        "view": view,
        "files": files,
        "uploads": uploads,
        "form": form,
        "jobs": jobs,
        "validation": validation,
        "capacity": capacity,
        **_models(process),
        **_inference(process),
        **_creation(process),
        **_what_happened(process),
        **_administration(process),
    }
    return {name: _provide(make) for name, make in made.items()}


def _provide(make: Callable[..., Any]) -> Provide:
    return Provide(make) if iscoroutinefunction(make) else Provide(make, sync_to_thread=False)


def _models(process: Process) -> dict[str, Callable[..., Any]]:
    """What can be called by name, and who else may call it."""

    def models(request: AnyRequest) -> ModelService:
        return ModelService(Repository(process.db, request.user, request_id_of(request.scope)), process.db)

    def permissions(request: AnyRequest) -> PermissionService:
        repository = Repository(process.db, request.user, request_id_of(request.scope))
        return PermissionService(repository, models(request), process.clock)

    def deletion(request: AnyRequest, jobs: NamedDependency[JobService]) -> JobDeletion:
        repository = Repository(process.db, request.user, request_id_of(request.scope))
        return JobDeletion(repository, jobs, models(request))

    return {"models": models, "permissions": permissions, "deletion": deletion}


def _inference(process: Process) -> dict[str, Callable[..., Any]]:
    """The services that let models answer."""
    settings, db = process.settings, process.db
    platform, turns = PlatformStore(db, node_ttl_s=settings.node_ttl_s), Turns(settings.max_generations)

    def engines(request: AnyRequest) -> Engines:
        return Engines(platform, process.generation, turns, request.user.key_id)

    def responses(request: AnyRequest) -> ResponseService:
        repository = Repository(db, request.user, request_id_of(request.scope))
        store, models = ResponseStore(repository), ModelService(repository, db)
        again = Again(request.scope["state"].get(CORE), is_done=DONE_BEFORE in request.scope["state"])
        return ResponseService(
            store, models, engines(request), process.clock, keep_s=settings.response_keep_s, again=again
        )

    return {"engines": engines, "responses": responses}


def _creation(process: Process) -> dict[str, Callable[..., Any]]:
    """What makes things, once for each request however often it is sent."""
    around, settings = process.around, process.settings

    def core(request: AnyRequest) -> str | None:
        """What the id of the thing that this request makes must be made of, where it came with an Idempotency-Key."""
        found: str | None = request.scope["state"].get(CORE)
        return found

    def creation(request: AnyRequest, jobs: NamedDependency[JobService]) -> JobCreation:
        repository = Repository(process.db, request.user, request_id_of(request.scope))
        return JobCreation(repository, jobs, around.room, settings.max_queued_jobs)

    async def sent(request: AnyRequest) -> Sent:
        body = await request.body()
        repeat = around.repeats.begin(request.user, request.scope["path"], body, read_retry(request.headers))
        request.scope["state"][REPEAT] = repeat
        return Sent(request.scope["state"].get(CORE), repeat)

    return {"core": core, "creation": creation, "sent": sent}


def _what_happened(process: Process) -> dict[str, Callable[..., Any]]:
    """The services that tell of a job's events."""
    settings, heads = process.settings, Heads(process.db)

    def repository(request: AnyRequest) -> Repository:
        return Repository(process.db, request.user, request_id_of(request.scope))

    def job_events(request: AnyRequest) -> EventService:
        return EventService(repository(request), heads)

    def following(request: AnyRequest) -> FollowService:
        async def may_still() -> bool:
            key = key_of(request.scope)
            principal = await process.keys.principal(key) if key else None
            return principal is not None and principal.may(Scope.JOBS_READ)

        most, heartbeat_s = settings.max_streams, settings.heartbeat_s
        return FollowService(repository(request), process.followers, may_still, most=most, heartbeat_s=heartbeat_s)

    return {"job_events": job_events, "following": following}


def _administration(process: Process) -> dict[str, Callable[..., Any]]:
    """The services behind `/organization`."""

    def tenancy(request: AnyRequest) -> TenancyService:
        directory = Directory(process.db, request.user)
        return TenancyService(directory, process.keys, process.clock)

    def api_keys(request: AnyRequest) -> KeyService:
        directory = Directory(process.db, request.user)
        return KeyService(directory, process.keys, tenancy(request))

    def audit_rows(request: AnyRequest) -> AuditReader:
        return AuditReader(process.db, request.user)

    return {"audit_rows": audit_rows, "tenancy": tenancy, "api_keys": api_keys}
