"""The examples of docs/keys.md, run as they stand."""

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import Protocol

from luthier_common.kit.mongo import Database

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "keys.md"
NEWEST = {"PROJECT": ("projects", ""), "KEY_ID": ("api_keys", "key_"), "USER_ID": ("users", "")}
RUN_S = 120


class Server(Protocol):
    url: str
    home: Path
    db: Database


async def test_every_shell_example_works_in_the_order_of_the_page(server: Server, tmp_path: Path) -> None:
    examples = re.findall(r"^```sh\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    assert len(examples) > 5
    try:
        for example in examples:
            await run(example, await environment(server), tmp_path)
    finally:
        made = {"_id": {"$ne": "proj-default"}, "archived_at": None}
        await server.db["projects"].update_many(made, [{"$set": {"archived_at": "$$NOW"}}])


async def environment(server: Server) -> dict[str, str]:
    """As the page says, and what a reader would copy from the answer before: the newest of each thing."""
    env = {
        "PATH": os.environ["PATH"],
        "LUTHIER_BASE_URL": server.url,
        "LUTHIER_API_KEY": (server.home / "admin-key").read_text().strip(),
    }
    for name, (collection, prefix) in NEWEST.items():
        for newest in (
            await server.db[collection].find({"_id": {"$ne": "proj-default"}}).sort("created_at", -1).to_list(1)
        ):
            env[name] = prefix + newest["_id"]
    return env


async def run(example: str, env: dict[str, str], folder: Path) -> None:
    script = f'set -euo pipefail\nluthier() {{ "{sys.executable}" -m luthier_cli "$@"; }}\n{example}'
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", script), env=env, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await asyncio.wait_for(process.communicate(), RUN_S)
    assert process.returncode == 0, f"{example}\n{out.decode()}"
