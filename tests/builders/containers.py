"""The containers of docker-compose.yml without an engine: the same command, environment, user and secrets, by hand.

What an engine would do by mounts and names is done by replacing them: paths below a folder of the test, addresses of
servers that run here. As root the process becomes the image's user, which can write nothing but its home and /tmp.
"""

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from builders.production import image_env, instructions
from builders.waiting import until
from luthier_stack.logs import tail
from luthier_stack.ports import find_free_ports

_LISTENS = ("LUTHIER_PORT", "LUTHIER_INFERENCE_PORT", "LUTHIER_HEALTH_PORT")


class Container:
    """One service of the compose file."""

    def __init__(self, name: str, server: dict[str, Any], folder: Path, replaced: Mapping[str, str]) -> None:
        self.name = name
        self.home = folder / name / "home"
        self._folder = folder / name
        self._server = server
        self._process: asyncio.subprocess.Process | None = None
        scratch = self._folder / "tmp"
        for path in (self.home, scratch):
            path.mkdir(parents=True)
            _give_away(path)
        self.env = image_env() | {key: str(value) for key, value in server["environment"].items()}
        for port, variable in zip(find_free_ports(3), _LISTENS, strict=True):
            if variable in self.env:
                self.env[variable] = str(port)
        self._replaced = {
            "/var/lib/luthier": str(self.home),
            "/run/secrets": str(self._folder / "secrets"),
            "/opt/luthier/bin:${PATH}": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "http://inference:8080": f"http://127.0.0.1:{self.env.get('LUTHIER_INFERENCE_PORT')}",
            "0.0.0.0": "127.0.0.1",
            **replaced,
        }
        self.env = {name: self._here(value) for name, value in self.env.items()} | {"TMPDIR": str(scratch)}

    def give_secrets(self, made: Path) -> None:
        """Those that the compose file names, and no others."""
        folder = self._folder / "secrets"
        folder.mkdir()
        for name in self._server["secrets"]:
            (folder / name).write_text(self._here((made / name).read_text()))

    def _here(self, text: str) -> str:
        for there, here in self._replaced.items():
            text = text.replace(there, here)
        return text

    async def start(self) -> None:
        [entrypoint] = [rest for word, rest in instructions("ground") if word == "ENTRYPOINT"]
        assert entrypoint == '["python", "-m"]'
        with (self._folder / "log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *_as_the_image_does((sys.executable, "-m", *self._server["command"])),
                cwd=self.home,
                env=self.env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    async def ended(self, within_s: float) -> int:
        """Its exit status."""
        assert self._process is not None
        return await asyncio.wait_for(self._process.wait(), within_s)

    async def stop(self) -> int:
        """What `docker stop` does: SIGTERM, and after the grace period SIGKILL. The exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return await self.ended(float(self._server["stop_grace_period"].removesuffix("s")))

    async def remove(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def is_well(self, *question: str) -> bool:
        """The image's own health check, or with `readyz` its sharper sister."""
        assert self._process is not None
        assert self._process.returncode is None, f"{self.name} ended: {self.log}"
        probe = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "luthier_common.kit.probe", *question),
            env=self.env,
            stdout=asyncio.subprocess.DEVNULL,
        )
        return await probe.wait() == 0

    @property
    def log(self) -> str:
        return tail(self._folder / "log", 40)

    def everything_logged(self) -> str:
        return (self._folder / "log").read_text()


def _give_away(path: Path) -> None:
    if os.geteuid() == 0:
        os.chown(path, 10001, 10001)


def _as_the_image_does(command: tuple[str, ...]) -> tuple[str, ...]:
    """As root: the image's user, without any right but to read what the interpreter here is made of."""
    setpriv = shutil.which("setpriv")
    if os.geteuid() != 0 or setpriv is None:
        return command
    user = ("--reuid", "10001", "--regid", "10001", "--clear-groups", "--no-new-privs", "--pdeathsig", "KILL")
    read = "+dac_read_search"
    rights = ("--bounding-set", f"-all,{read}", "--inh-caps", f"-all,{read}", "--ambient-caps", read)
    return (setpriv, *user, *rights, "--", *command)


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
