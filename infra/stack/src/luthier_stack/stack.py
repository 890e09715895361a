"""The whole system on one machine, as an object that a terminal or a test holds."""

import asyncio
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from luthier_stack.binaries import find_mongod, find_tansu
from luthier_stack.broker import EmbeddedBroker
from luthier_stack.env_file import API_URL_FILE, ENV_FILE, write_env_file
from luthier_stack.errors import PartFailedError, StackError, UnknownPartError
from luthier_stack.lock import HomeLock
from luthier_stack.logs import open_for_append, show, tail
from luthier_stack.mongo import EmbeddedMongo
from luthier_stack.part import Part, PartSpec, tied_to_this_process
from luthier_stack.ports import find_free_ports, is_free
from luthier_stack.scraping import env_of, metric_ports, write_targets
from luthier_stack.secret import secret_in
from luthier_stack.services import HealthProbe, check_service, service_spec
from luthier_stack.settings import SERVERS, StackSettings

_MIGRATE_TIMEOUT_S = 60.0
_LOOK_EVERY_S = 0.1
_SERVING = ("api", "inference")


class Stack:
    """Starts servers, migration and services in order; keeps them running; stops them in the reverse order."""

    def __init__(self, settings: StackSettings) -> None:
        self.settings = settings
        self.home = settings.home
        self.port = settings.port
        self.env: dict[str, str] = {}
        """What every service is told, the addresses of the servers among it."""
        self._lock = HomeLock(settings.home)
        self._parts: dict[str, Part] = {}
        self._is_migrated = False

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def processes(self) -> dict[str, int | None]:
        """Process id by part, in the order of starting; none while a part is down."""
        return {name: part.pid for name, part in self._parts.items()}

    @property
    def api_url(self) -> str:
        """Where the API answers, without a path."""
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        return f"http://{host}:{self.port}"

    @property
    def admin_key_path(self) -> Path:
        """The file into which the API writes the first key."""
        return self.home / "admin-key"

    @property
    def admin_key(self) -> str:
        """The first key of this installation."""
        if not self.admin_key_path.exists():
            raise StackError(f"there is no key yet at {self.admin_key_path}: the api writes it when it first starts")
        return self.admin_key_path.read_text().strip()

    async def start(self) -> None:
        """Return when every part answers; on a failure nothing is left running."""
        for name in self.settings.services:
            check_service(name)
        self._lock.acquire()
        try:
            self.choose_port()
            await self._start_parts(self._server_specs())
            write_env_file(self.home / ENV_FILE, self.env)
            if self.settings.services:
                await self._start_services()
            if "api" in self.settings.services:
                (self.home / API_URL_FILE).write_text(f"{self.api_url}\n")
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop every part, the last started first, and give the home free."""
        try:
            (self.home / API_URL_FILE).unlink(missing_ok=True)
            for part in reversed(self._parts.values()):
                await part.stop()
        finally:
            self._lock.release()

    async def wait_ready(self, name: str, timeout_s: float | None = None) -> None:
        """Return when the part says that it can do its work."""
        await self._part(name).wait_ready(self.settings.start_timeout_s if timeout_s is None else timeout_s)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a part; if it dies of it, it is started again."""
        self._part(name).kill(number)

    def restart_count(self, name: str) -> int:
        """How often a part has died and been started again."""
        return self._part(name).restart_count

    async def stop_service(self, name: str) -> None:
        """Stop one part, a server or a service, and leave it stopped."""
        await self._part(name).stop()

    async def start_service(self, name: str) -> None:
        """Start a part that was stopped, on the same ports, and wait until it answers."""
        part = self._part(name)
        part.start()
        await part.wait_alive(self.settings.start_timeout_s)

    def _part(self, name: str) -> Part:
        if name not in self._parts:
            raise UnknownPartError(f"no part {name!r} is here; there are: {', '.join(self._parts) or 'none'}")
        return self._parts[name]

    def choose_port(self) -> None:
        """Settle where the API listens: where it was told to, or on a free port when that one is taken."""
        if "api" in self.settings.services and not is_free(self.port, self.settings.host):
            self.port = find_free_ports(1, self.settings.host)[0]
            if self.settings.announce:
                show("stack", f"port {self.settings.port} is taken: the API listens on {self.port} instead")

    def _server_specs(self) -> list[PartSpec]:
        """The embedded servers that are needed; also settles the addresses that all services get."""
        if unknown := set(self.settings.servers) - set(SERVERS):
            raise UnknownPartError(f"no embedded server is called {unknown.pop()!r}; there are: {', '.join(SERVERS)}")
        given, specs = self.settings, []
        self.env = {name: value for name, value in os.environ.items() if name not in _PER_SERVICE}
        self.env |= {"LUTHIER_HOME": str(self.home), "LUTHIER_HOST": given.host}
        self.env.setdefault("LUTHIER_INTERNAL_TOKEN", secret_in(self.home / "internal-token", num_bytes=24))
        if given.mongo_url is not None:
            self.env["LUTHIER_MONGO_URL"] = given.mongo_url.get_secret_value()
        elif "mongod" in given.servers:
            specs.append(self._mongod_spec())
        if given.kafka_url is not None:
            self.env["LUTHIER_KAFKA_URL"] = given.kafka_url
        elif "tansu" in given.servers:
            specs.append(self._tansu_spec())
        self.env["LUTHIER_OBJECTS_URL"] = given.objects_url or self._local_objects()
        self.env |= given.service_env
        return specs

    def _mongod_spec(self) -> PartSpec:
        self._forget("LUTHIER_MONGO_CA_FILE")
        mongo = EmbeddedMongo(self.home, find_mongod(self.settings.mongod))
        self.env["LUTHIER_MONGO_URL"] = mongo.url
        return PartSpec(
            name="mongod",
            command=mongo.command,
            env=_bare_env(),
            log_path=self.home / "logs" / "mongod.log",
            is_alive=mongo.is_alive,
            is_ready=mongo.is_ready,
            settle=mongo.settle,
            announce=self.settings.announce,
        )

    def _tansu_spec(self) -> PartSpec:
        self._forget(*(name for name in self.env if name.startswith("LUTHIER_KAFKA_")))
        broker = EmbeddedBroker(find_tansu(self.settings.tansu))
        self.env["LUTHIER_KAFKA_URL"] = broker.url
        return PartSpec(
            name="tansu",
            command=broker.command,
            env=_bare_env(),
            log_path=self.home / "logs" / "tansu.log",
            is_alive=broker.is_alive,
            is_ready=broker.is_alive,
            settle=self._restore_topics,
            announce=self.settings.announce,
        )

    def _forget(self, *names: str) -> None:
        """An embedded server speaks no TLS: what the environment says of it is meant for another one."""
        for name in names:
            self.env.pop(name, None)

    def _service_specs(self) -> list[PartSpec]:
        rooms = self._room_by_process()
        ports = find_free_ports(2 * len(rooms))
        serving = {room: ports.pop() for room in self.settings.services if room in _SERVING} | {"api": self.port}
        scraped = metric_ports(self.env, list(rooms))
        write_targets(self.home, scraped, self.env, rooms)
        return [
            service_spec(
                room,
                name=name,
                env=self.env | env_of(scraped, self.env, name) | self._shares_of(room),
                health_port=ports.pop(),
                port=serving.get(room),
                logs=self.home / "logs",
                echo=self.settings.echo,
                announce=self.settings.announce,
                command=self.settings.commands.get(room),
            )
            for name, room in rooms.items()
        ]

    def _room_by_process(self) -> dict[str, str]:
        """What is started, by name: each service, and the further processes of the API."""
        rooms = {room: room for room in self.settings.services}
        further = range(2, self.settings.api_processes + 1) if "api" in rooms else ()
        return rooms | {f"api-{number}": "api" for number in further}

    def _shares_of(self, room: str) -> dict[str, str]:
        return {"LUTHIER_SHARE_PORT": "true"} if room == "api" and self.settings.api_processes > 1 else {}

    async def _start_services(self) -> None:
        """Inference takes longest to be ready and needs no index, so it imports while the migration runs.

        The first process of the API makes the first key; the others start when it has.
        """
        specs = {spec.name: spec for spec in self._service_specs()}
        further = [specs.pop(name) for name in list(specs) if name not in self.settings.services]
        early = self._launch([spec for spec in specs.values() if spec.name == "inference"])
        await self._migrate()
        later = self._launch([spec for spec in specs.values() if spec.name != "inference"])
        for part in (*later, *early):
            await part.wait_alive(self.settings.start_timeout_s)
        if further:
            await self._until_api_answers()
            await self._start_parts(further)

    async def _until_api_answers(self) -> None:
        probe, deadline = HealthProbe(self.api_url), time.monotonic() + self.settings.start_timeout_s
        while not await probe.is_alive():
            if time.monotonic() > deadline:
                raise PartFailedError(f"the API does not answer at {self.api_url}; see {self.home / 'logs'}")
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _start_parts(self, specs: list[PartSpec]) -> None:
        for part in self._launch(specs):
            await part.wait_alive(self.settings.start_timeout_s)

    def _launch(self, specs: list[PartSpec]) -> list[Part]:
        """All at once, in order; imports take seconds each, so one after another would take the sum."""
        longest_delay_s = self.settings.longest_restart_delay_s
        parts = [Part(replace(spec, longest_delay_s=longest_delay_s)) for spec in specs]
        for part in parts:
            self._parts[part.spec.name] = part
            part.start()
        return parts

    def _local_objects(self) -> str:
        folder = self.home / "objects"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder.as_uri()

    async def _restore_topics(self) -> bool:
        """The embedded broker came back empty: make its topics again before anyone is let at it."""
        if self._is_migrated:
            await self._migrate()
        return True

    async def _migrate(self) -> None:
        """Indexes and topics, by the one module that owns them."""
        log_path = self.home / "logs" / "migrate.log"
        log = open_for_append(log_path)
        try:
            process = await asyncio.create_subprocess_exec(
                *tied_to_this_process((sys.executable, "-m", "luthier_common.kit.migrate")),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.env,
                start_new_session=True,
            )
        finally:
            os.close(log)
        try:
            returncode = await asyncio.wait_for(process.wait(), _MIGRATE_TIMEOUT_S)
        except (TimeoutError, asyncio.CancelledError):
            process.kill()
            await process.wait()
            raise
        if returncode != 0:
            raise PartFailedError(f"the migration failed; {log_path} ends with:\n{tail(log_path)}")
        self._is_migrated = True


_PER_SERVICE = {"LUTHIER_PORT", "LUTHIER_HEALTH_PORT", "LUTHIER_MONGO_URL", "LUTHIER_KAFKA_URL", "LUTHIER_OBJECTS_URL"}


def _bare_env() -> dict[str, str]:
    """Servers get no variable that could change where they listen or what they report to whom."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "RUST_LOG": "warn"}
