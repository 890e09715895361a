"""Clients in processes of their own: the openai library of now and of an older major, and the one for Node."""

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import openai
import pytest

from builders.jobs import JobStory, make_blob
from builders.stories import succeed, train
from builders.waiting import until
from integration.api.conftest import TINY, Api
from integration.clients.conftest import SAID
from luthier_common.kit import ledger

HERE = Path(__file__).parent
CACHE = HERE.parents[2] / ".cache"
OLDER = "1.109.1"
INSTALL_S = 200


async def run(*command: str | Path, within_s: float = 60, **more: Any) -> str:
    """The command's output; what it complained of when it failed."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, **more
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), within_s)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, (output + errors).decode()[-4000:]
    return output.decode()


@pytest.fixture(scope="session")
async def older_openai() -> Path:
    """A folder with the newest openai 1.x and what it needs, installed once."""
    folder = CACHE / f"openai-{OLDER}"
    if not (folder / "complete").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        pinned = ("--no-deps", "--only-binary", ":all:", "--requirement", HERE / "older_openai.txt")
        await run(*pip, "--target", folder, *pinned, within_s=INSTALL_S)
        (folder / "complete").touch()
    return folder


@pytest.fixture(scope="session")
async def node_modules() -> Path:
    """A copy of `node/` with its locked packages, installed once for each lock."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("needs Node and npm: apt-get install nodejs npm")
    folder = CACHE / "node-openai"
    lock = (HERE / "node" / "package-lock.json").read_text()
    if not (folder / "complete").is_file() or (folder / "complete").read_text() != lock:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / "node" / name, folder)
        await run(npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts", cwd=folder, within_s=INSTALL_S)
        (folder / "complete").write_text(lock)
    shutil.copy(HERE / "node" / "story.mjs", folder)
    return folder


async def call_every_method(api: Api, half: str, **more_env: str) -> str:
    """The version of the library that did."""
    given = json.dumps(await _prepare(api))
    script = (sys.executable, "-P", HERE / "every_method.py")
    return (await run(*script, half, f"{api.url}/v1", api.key, given, env=os.environ | more_env)).strip()


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("half", ["sync", "async"])
async def test_every_method_of_the_openai_library(api: Api, half: str) -> None:
    assert await call_every_method(api, half) == openai.__version__


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("half", ["sync", "async"])
async def test_every_method_of_an_older_major_of_it(api: Api, older_openai: Path, half: str) -> None:
    assert await call_every_method(api, half, PYTHONPATH=str(older_openai)) == OLDER


async def test_the_openai_library_for_node(api: Api, node_modules: Path) -> None:
    told = json.loads(await run("node", "story.mjs", f"{api.url}/v1", api.key, TINY, cwd=node_modules))
    assert told["created"] == told["retrieved"] == told["cancelled_id"]
    assert told["file"].startswith("file-")
    assert (told["status"], told["cancelled"]) == ("validating_files", "cancelled")
    assert told["listed"][0] == told["created"]
    assert told["error"] == {"status": 404, "code": "not_found"}
    assert told["events"][-1] == f"Created fine-tuning job: {told['created']}"


async def _prepare(api: Api) -> dict[str, str]:
    """A job that waits, and one that has made a model and has a checkpoint whose bytes are there."""
    waiting = await (await JobStory.created(api.db)).accepted()
    tuned = f"ft:{TINY}:clients:{waiting.id[-8:]}"
    trained = await JobStory.created(api.db, model_name=tuned)
    await succeed(api.db, await train(api.db, trained.id), tuned)
    owned = {"org": "org-default", "project": "proj-default", "reference": f"job/{trained.id}"}
    await ledger.record(api.db, make_blob().key, sha256="0" * 64, num_bytes=10, **owned)
    jobs = api.sdk().fine_tuning.jobs

    async def checkpoint() -> str | None:
        saved = (await jobs.checkpoints.list(trained.id)).data
        return saved[0].fine_tuned_model_checkpoint if saved else None

    given = {"base": TINY, "said": "".join(SAID), "waiting": waiting.id, "trained": trained.id, "tuned": tuned}
    return given | {"checkpoint": await until(checkpoint)}
