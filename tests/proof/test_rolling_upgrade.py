"""The last released version and this one side by side: services are replaced one by one while a job runs.

`LUTHIER_UPGRADE_FROM` names another version to begin with than the last tag.
"""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from builders.bases import make_tiny_base, write_chat_file
from builders.scale import FULL
from builders.whole_stack import broken_in_the_end
from builders.workshop import TINY, Workshop, stack_settings, wait_ready, workshop_of
from luthier_stack.settings import SERVICES
from luthier_stack.stack import Stack

REPOSITORY = Path(__file__).resolve().parents[2]
EARLIER = "9247943"
"""Stands for the release before this one until there is one."""
NEEDS_RELEASE = "needs a released version"
ORDER = ("trainer", "registry", "file-validator", "scheduler", "inference", "api")
ORDERS = [ORDER[::-1], ORDER] if FULL else [ORDER[::-1]]
START = '#!/bin/sh\nPYTHONPATH="$(cat "$1")" exec "$2" -m "$3"\n'


def git(*arguments: str) -> str | None:
    """What git says; None where there is no git, no repository or no such thing."""
    try:
        return subprocess.run(
            ("git", "-C", str(REPOSITORY), *arguments), check=True, capture_output=True, text=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


@pytest.fixture
def released(tmp_path: Path) -> list[Path]:
    """The source folders of the last released version."""
    tagged = git("describe", "--tags", "--abbrev=0", "--match", "v*", "HEAD^")
    version = os.environ.get("LUTHIER_UPGRADE_FROM") or tagged or EARLIER
    if not git("rev-parse", "--verify", f"{version}^{{commit}}"):
        pytest.skip(f"{NEEDS_RELEASE}: this is no git repository with a tag v*, nor with {EARLIER}")
    folder, archive = tmp_path / "released", tmp_path / "released.tar"
    folder.mkdir()
    assert git("archive", "-o", str(archive), version, "libs", "services") is not None, f"git has no {version}"
    subprocess.run(("tar", "-xf", str(archive), "-C", str(folder)), check=True)
    return sorted(folder.glob("*/*/src"))


class Upgrade:
    """A stack whose services run the released version until they are replaced."""

    def __init__(self, folder: Path, released: list[Path]) -> None:
        self._folder = folder
        self._released = os.pathsep.join(str(path) for path in released)
        folder.mkdir()
        (folder / "start").write_text(START)
        for name in SERVICES:
            (folder / name).write_text(self._released)

    @property
    def env(self) -> dict[str, str]:
        """For the migration, that the stack itself runs."""
        return {"PYTHONPATH": self._released}

    @property
    def commands(self) -> dict[str, tuple[str, ...]]:
        script = str(self._folder / "start")
        return {
            name: ("/bin/sh", script, str(self._folder / name), sys.executable, f"luthier_{name.replace('-', '_')}")
            for name in SERVICES
        }

    async def replace(self, stack: Stack, name: str) -> None:
        (self._folder / name).write_text("")
        await stack.stop_service(name)
        await stack.start_service(name)
        await stack.wait_ready(name, 120)

    async def run(self, stack: Stack, *arguments: str, is_released: bool = False) -> str:
        """Run a program of this version, or of the released one; what it printed."""
        env = stack.env | {"PYTHONPATH": self._released if is_released else ""}
        process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        told, _ = await process.communicate()
        assert process.returncode == 0, told.decode()
        return told.decode().strip()


async def well_ended(workshop: Workshop, job_id: str) -> str:
    job = await workshop.ended(job_id)
    assert job.status == "succeeded", job.error
    assert job.fine_tuned_model is not None
    await workshop.assert_told_exactly(job_id)
    return job.fine_tuned_model


@pytest.mark.timeout(300)
@pytest.mark.parametrize("order", ORDERS, ids=lambda order: f"{order[0]} first")
async def test_services_are_replaced_one_by_one_while_a_job_runs(
    tmp_path: Path, released: list[Path], order: tuple[str, ...]
) -> None:
    """And after each replacement another job begins: between versions mixed in every way that these orders make."""
    base = make_tiny_base(tmp_path / TINY, name=TINY)
    rows, few_rows = (write_chat_file(tmp_path / f"{number}.jsonl", number) for number in (240, 24))
    upgrade = Upgrade(tmp_path / "versions", released)
    settings = stack_settings(tmp_path / "home", base, **upgrade.env)
    async with Stack(settings.model_copy(update={"commands": upgrade.commands})) as stack:
        where = ("-c", "import luthier_common; print(luthier_common.__file__)")
        assert (await upgrade.run(stack, *where, is_released=True)).startswith(str(tmp_path))
        assert not (await upgrade.run(stack, *where)).startswith(str(tmp_path))
        await wait_ready(stack)
        async with workshop_of(stack) as workshop:
            await upgrade.run(stack, "-m", "luthier_common.kit.migrate")
            begun = []
            for name in order:
                if name == "trainer":
                    begun.append(long := (await workshop.create(rows, num_epochs=8)).id)
                    await workshop.steps(long, at_least=3)
                await upgrade.replace(stack, name)
                begun.append((await workshop.create(few_rows, seed=len(begun))).id)
            for job_id in begun:
                await workshop.ask(await well_ended(workshop, job_id))
            assert (await workshop.doc(long))["attempt"] == 2
            assert all(stack.restart_count(name) == 0 for name in SERVICES)
            assert await broken_in_the_end(stack, workshop.db, acknowledged=begun, is_log_whole=True) == []
