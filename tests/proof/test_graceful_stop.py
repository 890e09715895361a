"""Every service ends within its time, also when broker, database and collector are dead; a run is not lost in silence.

15 s for every service, 120 s for the trainer. Frozen servers take connections and never answer, which is the worst. All
end of their own accord: the watchdog, which leaves a second before the time is over, would hide whatever hangs.
"""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple

import httpx2
import pytest

from builders.bases import make_tiny_base, write_chat_file
from builders.scale import FULL
from builders.workshop import TINY, Workshop, stack_settings, wait_ready, workshop_of
from luthier_stack.ports import find_free_ports
from luthier_stack.stack import Stack

SERVERS = ("mongod", "tansu")
BUDGET_S = 15.0
TRAINER_BUDGET_S = 120.0
SERVICES = ("api", "file-validator", "scheduler", "registry", "inference")
Death = Literal["frozen", "killed"]
PAUSE_BUDGETS_S: dict[Death, str] = {"frozen": "25", "killed": "90"}
"""The stack kills a server that is frozen for 50 to 60 s, and starts it again: the trainer has to end before."""
SLOW_ANSWERS = "inference.mid_answer=delay:0.3"
"""An answer of 200 tokens lasts for a minute."""


STEPS_PER_S = 5.0
"""The 500 steps of the job last far longer than the way to the last stop, on a busy machine too."""


class Ended(NamedTuple):
    """How a service went from SIGTERM to its exit, and what it logged meanwhile."""

    seconds: float
    status: int | None
    log: str


@asynccontextmanager
async def black_hole() -> AsyncIterator[str]:
    """A collector that takes everything and never answers."""

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while await reader.read(65536):
                pass
        writer.close()

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def die(stack: Stack, death: Death, *names: str) -> None:
    for name in names:
        if death == "frozen":
            stack.kill(name, signal.SIGSTOP)
        else:
            await kill_for_good(stack, name)


async def kill_for_good(stack: Stack, name: str) -> None:
    """Not in order, and not started again."""
    stopping = asyncio.create_task(stack.stop_service(name))
    await asyncio.sleep(0)
    with suppress(Exception):
        stack.kill(name, signal.SIGKILL)
    await stopping


async def stop(stack: Stack, name: str) -> Ended:
    process, path = stack._part(name)._process, stack.home / "logs" / f"{name}.log"
    assert process is not None
    num_bytes = path.stat().st_size
    began_at = time.monotonic()
    await stack.stop_service(name)
    took_s = time.monotonic() - began_at
    return Ended(took_s, process.returncode, path.read_bytes()[num_bytes:].decode())


def assert_in_order(ended: Ended, within_s: float) -> None:
    assert "did not stop within" not in ended.log, ended.log[-3000:]
    assert '"message": "stopped"' in ended.log, ended.log[-3000:]
    assert (ended.status, ended.seconds < within_s) == (0, True), f"{ended.seconds:.1f} s\n{ended.log[-3000:]}"


@asynccontextmanager
async def watched(stack: Stack, path: str, body: dict[str, object] | None = None) -> AsyncIterator[asyncio.Task[int]]:
    """An open stream of the API that its reader does not leave; the task ends with it."""
    began = asyncio.Event()

    async def read() -> int:
        num_bytes = 0
        headers = {"authorization": f"Bearer {stack.admin_key}"}
        async with httpx2.AsyncClient(base_url=stack.api_url, headers=headers, timeout=300) as client:
            method = "POST" if body else "GET"
            with suppress(httpx2.HTTPError):
                async with client.stream(method, path, json=body) as answer:
                    assert answer.status_code == 200
                    async for chunk in answer.aiter_bytes():
                        num_bytes += len(chunk)
                        began.set()
        began.set()
        return num_bytes

    task = asyncio.create_task(read())
    await asyncio.wait_for(began.wait(), 30)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})


async def in_training(shop: Workshop, root: Path) -> str:
    job = await shop.create(write_chat_file(root / "rows.jsonl", 40), num_epochs=50)
    await shop.steps(job.id, 3)
    return job.id


@pytest.mark.timeout(420)
@pytest.mark.parametrize("death", ["frozen", "killed"] if FULL else ["frozen"])
async def test_all_services_stop_in_time_when_everything_around_them_is_dead(tmp_path: Path, death: Death) -> None:
    dead_port = f"http://127.0.0.1:{find_free_ports(1)[0]}"
    async with AsyncExitStack() as held:
        collector = await held.enter_async_context(black_hole()) if death == "frozen" else dead_port
        settings = stack_settings(
            tmp_path / "home",
            make_tiny_base(tmp_path / "base", TINY),
            stub_child=not FULL,
            steps_per_s=STEPS_PER_S,
            OTEL_EXPORTER_OTLP_ENDPOINT=collector,
            LUTHIER_PAUSE_BUDGET_S=PAUSE_BUDGETS_S[death] if FULL else "5",
            LUTHIER_FAILPOINTS=SLOW_ANSWERS,
        )
        stack = await held.enter_async_context(Stack(settings))
        held.push_async_callback(die, stack, "killed", *SERVERS)
        await wait_ready(stack)
        shop = await held.enter_async_context(workshop_of(stack))
        job_id = await in_training(shop, tmp_path)
        await die(stack, death, "tansu")
        await assert_a_checkpoint_is_saved(stack, shop, job_id)
        question = {"model": TINY, "messages": [{"role": "user", "content": "Hi"}], "stream": True, "max_tokens": 200}
        follower = await held.enter_async_context(watched(stack, f"/v1/fine_tuning/jobs/{job_id}/events/stream"))
        chats = [await held.enter_async_context(watched(stack, "/v1/chat/completions", question)) for _ in range(4)]
        await die(stack, death, "mongod")
        # Every loop is to be in the middle of a call that hangs.
        await asyncio.sleep(3)
        num_open = sum(not chat.done() for chat in chats)
        assert num_open > 0, "the answers were to last until the end"
        assert not follower.done()
        names = (*SERVICES, "trainer")
        ends = dict(zip(names, await asyncio.gather(*(stop(stack, name) for name in names)), strict=True))
        told = ", ".join(f"{name} {ended.seconds:.1f} s ({ended.status})" for name, ended in ends.items())
        print(f"\n{death}, {num_open} answers and a list of events under way: {told}")
        for name in SERVICES:
            assert_in_order(ends[name], BUDGET_S)
        assert_in_order(ends["trainer"], TRAINER_BUDGET_S if FULL else 5 + 25)
        if death == "frozen":
            await assert_the_loss_is_told(stack, shop, job_id)


async def assert_the_loss_is_told(stack: Stack, shop: Workshop, job_id: str) -> None:
    """The servers come back, and the trainer: what could not be told then is told now."""
    for name in SERVERS:
        stack.kill(name, signal.SIGCONT)
    before = await shop.doc(job_id)
    assert before["phase"] == "training"
    await stack.start_service("trainer")
    await shop.in_phase(job_id, "waiting", within_s=30)
    doc = await shop.doc(job_id)
    told = [entry["data"] for entry in doc["outbox"] if entry["type"] == "RunFailed"]
    assert [fact["problem"]["code"] for fact in told if not fact["preempted"]] == ["node_restarted"]
    assert doc["checkpoint"]["step"] >= before["checkpoint"]["step"]
    assert_in_order(await stop(stack, "trainer"), BUDGET_S)


async def assert_a_checkpoint_is_saved(stack: Stack, shop: Workshop, job_id: str) -> None:
    """Broker and collector are dead, the database lives: the run goes back to the queue with all that it made."""
    ended = await stop(stack, "trainer")
    doc = await shop.doc(job_id)
    step = doc["checkpoint"]["step"]
    print(f"\nthe database alive: trainer {ended.seconds:.1f} s, with a checkpoint of step {step}")
    assert_in_order(ended, BUDGET_S)
    assert (doc["phase"], doc["strikes"], doc["last_step"]) == ("waiting", 0, step)
    assert await shop.db["nodes"].count_documents({"role": "trainer", "phase": "live"}) == 0
    await stack.start_service("trainer")
    await shop.steps(job_id, step + 3)
