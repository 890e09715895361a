"""Clients in processes of their own: an older major of the openai library, and the one for Node."""

import asyncio
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from integration.api.conftest import TINY, Api

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


async def test_an_older_major_of_the_openai_library(api: Api, older_openai: Path) -> None:
    script = (sys.executable, "-I", "-c", _SCRIPT, str(older_openai), str(HERE / "older_openai.py"))
    told = json.loads(await run(*script, f"{api.url}/v1", api.key, TINY))
    assert told.pop("job").startswith("ftjob-")
    assert told == {
        "version": OLDER,
        "refused": "invalid_state",
        "status": "cancelled",
        "async_status": "cancelled",
    }


async def test_the_openai_library_for_node(api: Api, node_modules: Path) -> None:
    told = json.loads(await run("node", "story.mjs", f"{api.url}/v1", api.key, TINY, cwd=node_modules))
    assert told["created"] == told["retrieved"] == told["cancelled_id"]
    assert told["file"].startswith("file-")
    assert (told["status"], told["cancelled"]) == ("validating_files", "cancelled")
    assert told["listed"][0] == told["created"]
    assert told["error"] == {"status": 404, "code": "not_found"}
    assert told["events"][-1] == f"Created fine-tuning job: {told['created']}"


_SCRIPT = """
import runpy, sys
folder, script, *arguments = sys.argv[1:]
sys.path.insert(0, folder)
sys.argv = [script, *arguments]
runpy.run_path(script, run_name="__main__")
"""
