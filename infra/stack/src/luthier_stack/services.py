"""The six services as parts: which module each one is, what it is told, how long it may take to stop."""

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx2

from luthier_stack.errors import UnknownPartError
from luthier_stack.part import PartSpec
from luthier_stack.settings import SERVICES

STOP_BUDGET_S = 15.0
TRAINER_STOP_BUDGET_S = 120.0
_PROBE_TIMEOUT_S = 5.0


def check_service(name: str) -> None:
    """Refuse a name that is no service, or one that is not installed here."""
    if name not in SERVICES:
        raise UnknownPartError(f"{name!r} is not a service; there are: {', '.join(SERVICES)}")
    module = _module_of(name)
    if importlib.util.find_spec(module) is None or importlib.util.find_spec(f"{module}.__main__") is None:
        raise UnknownPartError(f"the service {name} is not installed here (no module {module})")


def service_spec(
    room: str,
    *,
    name: str | None = None,
    env: Mapping[str, str],
    health_port: int,
    port: int | None,
    logs: Path,
    echo: bool,
    announce: bool,
    command: tuple[str, ...] | None = None,
) -> PartSpec:
    """How to run one service; `port` is where it serves users or other services, for those that do.

    `name` is that of the process, where the service has several.
    """
    name = name or room
    own = {"LUTHIER_HEALTH_PORT": str(health_port), "PYTHONUNBUFFERED": "1"}
    if port is not None:
        own["LUTHIER_PORT"] = str(port)
    probe = HealthProbe(f"http://127.0.0.1:{health_port}")
    return PartSpec(
        name=name,
        command=command or (sys.executable, "-m", _module_of(room)),
        env={**env, **own},
        log_path=logs / f"{name}.log",
        is_alive=probe.is_alive,
        is_ready=probe.is_ready,
        stop_budget_s=TRAINER_STOP_BUDGET_S if room == "trainer" else STOP_BUDGET_S,
        echo=echo,
        announce=announce,
    )


class HealthProbe:
    """Asks a service over HTTP how it is."""

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url

    async def is_alive(self) -> bool:
        """Whether the process answers at all."""
        return await self._is_ok("/healthz")

    async def is_ready(self) -> bool:
        """Whether the service says that it can do its work."""
        return await self._is_ok("/readyz")

    async def _is_ok(self, path: str) -> bool:
        # Plain HTTP on loopback: reading the CA bundle for every probe would cost more than the probe.
        async with httpx2.AsyncClient(timeout=_PROBE_TIMEOUT_S, trust_env=False, verify=False) as client:
            try:
                answer = await client.get(self._base_url + path)
            except httpx2.HTTPError:
                return False
        return answer.status_code == httpx2.codes.OK


def _module_of(name: str) -> str:
    return f"luthier_{name.replace('-', '_')}"
