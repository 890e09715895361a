"""A step's event as a trainer states it, durable, beside a metric logged to MLflow 3.17 with one worker over sqlite.

One serial writer each, taking turns; the gate is 0.5 of its median, the aim 0.2. A batch of 100 and the retrieval of
the job, or of the run, are reported too.
"""

import json
import tempfile
from pathlib import Path

from _bench import database_of, report_spread, run, stack_of
from _load import Client
from _peer import Do, in_turn, peer_env, peer_server

from builders.jobs import JobStory, make_step
from luthier_common.kit.mongo import Database
from luthier_stack.ports import find_free_ports
from luthier_stack.stack import Stack

REQUIREMENTS = ("mlflow==3.17.2",)
NUM_WRITES = 200
NUM_BATCHES = 20
COUNTS = {"event": NUM_WRITES, "batch_of_100": NUM_BATCHES, "retrieve": NUM_WRITES}
BATCH = 100
RUNS = "/api/2.0/mlflow/runs"


async def measure() -> None:
    mlflow = peer_env("mlflow", REQUIREMENTS) / "mlflow"
    with tempfile.TemporaryDirectory(prefix="luthier-bench-", ignore_cleanup_errors=True) as folder:
        home, port = Path(folder), find_free_ports(1)[0]
        command = (str(mlflow), "server", "--workers", "1", "--allowed-hosts", "*", "--port", str(port))
        stores = ("--backend-store-uri", f"sqlite:///{home}/runs.db", "--artifacts-destination", f"{home}/artifacts")
        env = {"HOME": folder, "PATH": f"{mlflow.parent}:/usr/bin:/bin"}
        async with (
            peer_server((*command, *stores), port, home / "log", env=env),
            stack_of(["api"]) as stack,
            database_of(stack) as db,
        ):
            ours, theirs = await _our_deeds(stack, db), await _their_deeds(port)
            for name, count in COUNTS.items():
                times_ms = await in_turn(count, ours[name], theirs[name])
                report_spread(f"peers_mlflow.{name}", times_ms[0], "ms", times_ms[1])


async def _their_deeds(port: int) -> dict[str, Do]:
    client = await Client.connect(port)

    async def post(verb: str, body: object) -> bytes:
        return await client.post(f"{RUNS}/{verb}", json.dumps(body).encode(), "")

    run_id = json.loads(await post("create", {"experiment_id": "0"}))["run"]["info"]["run_id"]

    async def write(number: int) -> object:
        return await post("log-metric", {"run_id": run_id, **_metric(number)})

    async def write_batch(number: int) -> object:
        first = NUM_WRITES * 2 + number * BATCH
        return await post("log-batch", {"run_id": run_id, "metrics": [_metric(first + n) for n in range(BATCH)]})

    async def read(_number: int) -> object:
        return await client.get(f"{RUNS}/get?run_id={run_id}")

    return {"event": write, "batch_of_100": write_batch, "retrieve": read}


def _metric(step: int) -> dict[str, object]:
    return {"key": "train_loss", "value": 1.0 / (1 + step), "timestamp": 1_700_000_000_000 + step, "step": step}


async def _our_deeds(stack: Stack, db: Database) -> dict[str, Do]:
    (await Client.connect(stack.port)).close()  # from then on there is a key
    client = await Client.connect(stack.port, stack.admin_key)
    story = await (await JobStory.created(db)).in_training()
    batches = [await (await JobStory.created(db)).in_training() for _ in range(NUM_BATCHES + 5)]

    async def write(number: int) -> object:
        assert (await story.tell(make_step(number + 1, total_steps=1000), attempt=1)).applied
        return story

    async def write_batch(number: int) -> object:
        steps = [make_step(step, total_steps=1000) for step in range(1, BATCH + 1)]
        assert (await batches[number].tell(*steps, attempt=1)).applied
        return story

    async def read(_number: int) -> object:
        return await client.get(f"/v1/fine_tuning/jobs/{story.id}")

    return {"event": write, "batch_of_100": write_batch, "retrieve": read}


if __name__ == "__main__":
    run(measure)
