"""What a request needs, made from what the process has."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from litestar import Request

from luthier_api.around.idempotency import CORE, DONE_BEFORE, REPEAT, RETRY
from luthier_api.around.process import Around
from luthier_api.domain import DialectName, Principal, Scope, View
from luthier_api.idempotency import Ids, read_patience, read_retry
from luthier_api.keys import KeyRing
from luthier_api.middleware import STRICT_HEADER, header_of, key_of, request_id_of
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
from luthier_api.services.waiting import Queue
from luthier_api.settings import ApiSettings
from luthier_api.store import PlatformStore, Repository
from luthier_api.store.audit import AuditReader
from luthier_api.store.capacity import CapacityStore
from luthier_api.store.events import Heads
from luthier_api.store.responses import ResponseStore
from luthier_api.store.tenancy import Directory
from luthier_api.transfers import Downloads, Uploads
from luthier_api.turns import Turns
from luthier_api.upload import Upload
from luthier_common.kit.clock import Clock
from luthier_common.kit.generation import GenerationClient
from luthier_common.kit.health import Health
from luthier_common.kit.mongo import Database
from luthier_common.kit.objects import ObjectStore

DIALECT = "dialect"
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

    @cached_property
    def platform(self) -> PlatformStore:
        return PlatformStore(self.db, node_ttl_s=self.settings.node_ttl_s)

    @cached_property
    def turns(self) -> Turns:
        return Turns(self.settings.max_generations)

    @cached_property
    def downloads(self) -> Downloads:
        return Downloads(self.settings.max_downloads)

    @cached_property
    def uploads(self) -> Uploads:
        return Uploads(self.settings.max_uploads)

    @cached_property
    def heads(self) -> Heads:
        return Heads(self.db)


class Services:
    """What one request works with, behind its principal's wall. A service is made when a handler names it."""

    def __init__(self, process: Process, request: AnyRequest) -> None:
        self._process = process
        self._request = request

    @cached_property
    def view(self) -> View:
        dialect: DialectName = self._request.route_handler.opt.get(DIALECT, "openai")
        asked = header_of(self._request.scope, STRICT_HEADER.encode())
        return View(dialect, is_strict=self._request.user.is_strict if asked is None else asked.lower() == b"true")

    @cached_property
    def is_retry(self) -> bool:
        """Whether this request was sent before: its Idempotency-Key is known, or the client's own library says so."""
        if self._request.scope["state"].get(RETRY):
            return True
        return self._request.headers.get("x-stainless-retry-count", "0") not in ("", "0")

    @cached_property
    def _repository(self) -> Repository:
        return Repository(self._process.db, self._request.user, request_id_of(self._request.scope))

    # Files

    @cached_property
    def files(self) -> FileService:
        it = self._process
        return FileService(self._repository, it.db, it.objects, it.clock, it.settings, it.downloads)

    @cached_property
    def uploads(self) -> UploadService:
        it = self._process
        return UploadService(self._repository, it.db, it.objects, it.clock, it.settings, self._ids, it.uploads)

    @cached_property
    def form(self) -> Upload:
        """The body, where it is a form."""
        kind = self._request.headers.get("content-type", "")
        return Upload(kind, self._request.stream(), self._process.uploads.place(self._request.user))

    # Jobs

    @cached_property
    def jobs(self) -> JobService:
        return JobService(self._repository, self._process.around.bases, self._queue, self._process.settings)

    @cached_property
    def creation(self) -> JobCreation:
        it = self._process
        return JobCreation(self._repository, self.jobs, self._queue, it.around.in_use, it.settings.max_queued_jobs)

    @cached_property
    def _queue(self) -> Queue:
        return self._process.around.room.queue(self._request.user)

    @cached_property
    def deletion(self) -> JobDeletion:
        return JobDeletion(self._repository, self.jobs, self.models)

    @cached_property
    def validation(self) -> ValidationService:
        return ValidationService(self.jobs, self._process.objects, self._process.settings)

    @cached_property
    def capacity(self) -> CapacityStore:
        return CapacityStore(self._repository, node_ttl_s=self._process.settings.node_ttl_s)

    @cached_property
    def job_events(self) -> EventService:
        return EventService(self._repository, self._process.heads, self.view)

    @cached_property
    def following(self) -> FollowService:
        it = self._process
        most, heartbeat_s = it.settings.max_streams, it.settings.heartbeat_s
        return FollowService(
            self._repository, it.followers, self.view, self._may_follow, most=most, heartbeat_s=heartbeat_s
        )

    async def _may_follow(self) -> bool:
        """Asked now and then: a stream outlives the check of its request's key."""
        key = key_of(self._request.scope)
        principal = await self._process.keys.principal(key) if key else None
        return principal is not None and principal.may(Scope.JOBS_READ)

    # Making things once, however often a request is sent

    @cached_property
    def core(self) -> str | None:
        """What the id of the thing that this request makes must be made of, where it came with an Idempotency-Key."""
        found: str | None = self._request.scope["state"].get(CORE)
        return found

    @cached_property
    def _ids(self) -> Ids:
        return Ids(self.core, self._process.clock)

    async def sent(self) -> Sent:
        """How this request was sent; reads its body."""
        request, repeats = self._request, self._process.around.repeats
        retry, patience_s = read_retry(request.headers), read_patience(request.headers)
        repeat = repeats.begin(request.user, request.scope["path"], await request.body(), retry, patience_s)
        request.scope["state"][REPEAT] = repeat
        return Sent(self.core, repeat)

    # Models

    @cached_property
    def models(self) -> ModelService:
        return ModelService(self._repository, self._process.db)

    @cached_property
    def permissions(self) -> PermissionService:
        return PermissionService(self._repository, self.models, self._process.clock)

    @cached_property
    def engines(self) -> Engines:
        it = self._process
        return Engines(it.platform, it.generation, it.turns, self._request.user.key_id)

    @cached_property
    def responses(self) -> ResponseService:
        it = self._process
        again = Again(self.core, is_done=DONE_BEFORE in self._request.scope["state"])
        return ResponseService(
            ResponseStore(self._repository),
            self.models,
            self.engines,
            it.clock,
            keep_s=it.settings.response_keep_s,
            again=again,
        )

    # The organization

    @cached_property
    def _directory(self) -> Directory:
        return Directory(self._process.db, self._request.user)

    @cached_property
    def tenancy(self) -> TenancyService:
        return TenancyService(self._directory, self._process.keys, self._ids)

    @cached_property
    def api_keys(self) -> KeyService:
        return KeyService(self._directory, self._process.keys, self.tenancy, self._ids)

    @cached_property
    def audit_rows(self) -> AuditReader:
        return AuditReader(self._process.db, self._request.user)
