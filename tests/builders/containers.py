"""The containers of docker-compose.yml: in an engine where one is named, else the same by hand.

`LUTHIER_CONTAINER_ENGINE=docker` (or `podman`) runs the images, which are to be built before, on the host's network.
Without it the same command runs with the same environment, user and secrets; what an engine does by mounts is then done
by replacing paths. Addresses are replaced in both: the servers run here.
"""

import asyncio
import os
import shlex
import shutil
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

from builders.production import image_env, instructions
from builders.waiting import until
from luthier_stack.logs import tail
from luthier_stack.ports import find_free_ports

ENGINE = shlex.split(os.environ.get("LUTHIER_CONTAINER_ENGINE", ""))
_LISTENS = ("LUTHIER_PORT", "LUTHIER_INFERENCE_PORT", "LUTHIER_HEALTH_PORT")
_PROBE = ("-m", "luthier_common.kit.probe")


class Container(ABC):
    """One service of the compose file. Its home, and what it logs, lie in a folder of the test."""

    given: ClassVar[dict[str, str]] = {"LUTHIER_HEALTH_PORT": image_env()["LUTHIER_HEALTH_PORT"]}
    """What is in the environment before the compose file says more, and must be another here."""

    def __init__(self, name: str, server: dict[str, Any], folder: Path, replaced: Mapping[str, str]) -> None:
        self.name = name
        self.home = folder / name / "home"
        self.scratch = folder / name / "tmp"
        self.secrets = folder / name / "secrets"
        self.models = folder / "models"
        self.server = server
        self._log = folder / name / "log"
        self._process: asyncio.subprocess.Process | None = None
        for path in (self.home, self.scratch):
            path.mkdir(parents=True)
            _give_away(path)
        self.env = self.given | {key: str(value) for key, value in server["environment"].items()}
        for port, variable in zip(find_free_ports(3), _LISTENS, strict=True):
            if variable in self.env:
                self.env[variable] = str(port)
        engine = f"http://127.0.0.1:{self.env.get('LUTHIER_INFERENCE_PORT')}"
        self._replaced = {**self.places(), "http://inference:8080": engine, "0.0.0.0": "127.0.0.1", **replaced}
        self.env = {name: self._here(value) for name, value in self.env.items()}

    def places(self) -> dict[str, str]:
        """Where a path of the container lies here."""
        return {}

    def give_secrets(self, made: Path) -> None:
        """Those that the compose file names, and no others."""
        self.secrets.mkdir()
        for name in self.server["secrets"]:
            (self.secrets / name).write_text(self._here((made / name).read_text()))

    def _here(self, text: str) -> str:
        for there, here in self._replaced.items():
            text = text.replace(there, here)
        return text

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.command(),
                cwd=self.home,
                env=self.process_env(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @abstractmethod
    def command(self) -> list[str]: ...

    def process_env(self) -> dict[str, str] | None:
        """None: that of the test."""
        return None

    async def ended(self, within_s: float) -> int:
        """Its exit status."""
        assert self._process is not None
        return await asyncio.wait_for(self._process.wait(), within_s)

    @abstractmethod
    async def stop(self) -> int:
        """What `docker stop` does: SIGTERM, and after the grace period SIGKILL. The exit status."""

    @property
    def grace_s(self) -> float:
        return float(self.server["stop_grace_period"].removesuffix("s"))

    async def remove(self) -> None:
        if self._process is not None and self._process.returncode is None:
            await self.kill()
            await self._process.wait()

    @abstractmethod
    async def kill(self) -> None: ...

    async def is_well(self, *question: str) -> bool:
        """The image's own health check, or with `readyz` its sharper sister."""
        assert self._process is not None
        assert self._process.returncode is None, f"{self.name} ended: {self.log}"
        return await _run(*self.probe(), *question, env=self.process_env()) == 0

    @abstractmethod
    def probe(self) -> list[str]: ...

    @property
    def log(self) -> str:
        return tail(self._log, 40)

    def everything_logged(self) -> str:
        return self._log.read_text()


class ContainerByHand(Container):
    """As root the process becomes the image's user, which can write nothing but its home and /tmp."""

    given = image_env()

    def places(self) -> dict[str, str]:
        return {
            "/var/lib/luthier": str(self.home),
            "/run/secrets": str(self.secrets),
            "/models": str(self.models),
            "/opt/luthier/bin:${PATH}": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        }

    def command(self) -> list[str]:
        [entrypoint] = [rest for word, rest in instructions("ground") if word == "ENTRYPOINT"]
        assert entrypoint == '["python", "-m"]'
        return _as_the_image_does([sys.executable, "-m", *self.server["command"]])

    def process_env(self) -> dict[str, str]:
        return self.env | {"TMPDIR": str(self.scratch)}

    async def stop(self) -> int:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return await self.ended(self.grace_s)

    async def kill(self) -> None:
        assert self._process is not None
        self._process.kill()

    def probe(self) -> list[str]:
        return [sys.executable, *_PROBE]


class ContainerInEngine(Container):
    """As compose starts it, but for the network."""

    @property
    def _name(self) -> str:
        return f"luthier-{self.name}-{os.getpid()}"

    def command(self) -> list[str]:
        server = self.server
        flags = ["--rm", "--name", self._name, "--network", "host", "--no-healthcheck"]
        flags += ["--init"] * server["init"] + ["--read-only"] * server["read_only"]
        flags += [f"--cap-drop={each}" for each in server["cap_drop"]]
        flags += [f"--security-opt={each.removesuffix(':true')}" for each in server["security_opt"]]
        flags += [f"--tmpfs={each}" for each in server["tmpfs"]]
        flags += [f"--volume={each}" for each in (f"{self.secrets}:/run/secrets:ro", *self._volumes())]
        flags += [f"--env={name}={value}" for name, value in self.env.items()]
        return [*ENGINE, "run", *flags, server["image"], *server["command"]]

    def _volumes(self) -> list[str]:
        here = {"/var/lib/luthier": self.home, "/models": self.models}
        volumes = [volume.split(":") for volume in self.server.get("volumes", ())]
        return [":".join([str(here[place]), place, *options]) for _, place, *options in volumes]

    async def stop(self) -> int:
        await _run(*ENGINE, "stop", "--time", f"{self.grace_s:g}", self._name)
        return await self.ended(self.grace_s)

    async def kill(self) -> None:
        await _run(*ENGINE, "rm", "--force", self._name)

    def probe(self) -> list[str]:
        return [*ENGINE, "exec", self._name, "python", *_PROBE]


def make_container(name: str, server: dict[str, Any], folder: Path, replaced: Mapping[str, str]) -> Container:
    return (ContainerInEngine if ENGINE else ContainerByHand)(name, server, folder, replaced)


def _give_away(path: Path) -> None:
    if os.geteuid() == 0:
        os.chown(path, 10001, 10001)


def _as_the_image_does(command: list[str]) -> list[str]:
    """As root: the image's user, without any right but to read what the interpreter here is made of."""
    setpriv = shutil.which("setpriv")
    if os.geteuid() != 0 or setpriv is None:
        return command
    user = ("--reuid", "10001", "--regid", "10001", "--clear-groups", "--no-new-privs", "--pdeathsig", "KILL")
    read = "+dac_read_search"
    rights = ("--bounding-set", f"-all,{read}", "--inh-caps", f"-all,{read}", "--ambient-caps", read)
    return [setpriv, *user, *rights, "--", *command]


async def _run(*command: str, env: Mapping[str, str] | None = None) -> int:
    quiet = asyncio.subprocess.DEVNULL
    return await (await asyncio.create_subprocess_exec(*command, env=env, stdout=quiet)).wait()


@asynccontextmanager
async def running(containers: list[Container]) -> AsyncIterator[None]:
    """All started and well; removed in the end, whatever happened."""
    try:
        for container in containers:
            await container.start()
        for container in containers:
            await until(container.is_well, within_s=150, every_s=1.0, what=f"{container.name}: {container.log}")
        yield
    finally:
        for container in containers:
            await container.remove()
