"""A real Prometheus (Debian's package) that scrapes what a targets file names, and answers questions."""

import asyncio
import math
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from builders.waiting import until
from luthier_stack.logs import tail
from luthier_stack.part import tied_to_this_process
from luthier_stack.ports import find_free_ports

NEEDS_PROMETHEUS = "needs prometheus and promtool: apt-get install prometheus"


class Prometheus:
    """One running server."""

    def __init__(self, http: httpx2.AsyncClient, folder: Path) -> None:
        self._http = http
        self._folder = folder
        self.began_at_s = time.time()

    async def is_ready(self) -> bool:
        try:
            return (await self._http.get("/-/ready")).status_code == 200
        except httpx2.HTTPError:
            return False

    async def ask(self, path: str, **params: str | float) -> Any:
        """The `data` of an answer of its API."""
        answer = (await self._http.get(f"/api/v1/{path}", params=params)).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    async def points(self, query: str, *, step_s: float = 1.0) -> list[float]:
        """All numbers that a panel with this query would draw for the time since the start."""
        asked = {"query": query, "start": self.began_at_s, "end": time.time(), "step": step_s}
        found = await self.ask("query_range", **asked)
        numbers = [float(value) for line in found["result"] for _, value in line["values"]]
        return [one for one in numbers if math.isfinite(one)]


@asynccontextmanager
async def prometheus_of(folder: Path, targets: Path, rules: Path) -> AsyncIterator[Prometheus]:
    """A server that scrapes every second until the block ends."""
    if shutil.which("prometheus") is None:
        pytest.skip(NEEDS_PROMETHEUS)
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s, evaluation_interval: 2s}\n"
        f"rule_files: [{rules}]\n"
        "scrape_configs:\n"
        "  - job_name: luthier\n"
        f"    file_sd_configs: [{{files: [{targets}], refresh_interval: 1s}}]\n"
    )
    address = f"127.0.0.1:{find_free_ports(1)[0]}"
    command = (
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=warn",
    )
    log = folder / "prometheus.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *tied_to_this_process(command), stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        async with httpx2.AsyncClient(base_url=f"http://{address}", trust_env=False, timeout=10) as http:
            server = Prometheus(http, folder)
            await until(server.is_ready, within_s=20, every_s=0.1, what=tail(log))
            yield server
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
