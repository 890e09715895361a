"""Submit, status and list of fine-tuning jobs beside llama-stack 0.2.12, by one serial client each, taking turns.

The gate is 0.5 of its median in all three, the aim 0.2. It keeps its jobs in memory, ours are durable when they are
answered. Its one training process is left with a data set that does not exist, so that training costs it nothing. It
has no pages: its list holds all jobs, and so does ours beside it; our first page of 20 is reported too.
"""

import json
import tempfile
from pathlib import Path

from _bench import TINY, database_of, report_spread, run, stack_of
from _load import Client
from _peer import Do, in_turn, peer_env, peer_server
from openai import AsyncOpenAI

from builders.bases import write_chat_file
from luthier_stack.ports import find_free_ports
from luthier_stack.stack import Stack

REQUIREMENTS = (
    "llama-stack==0.2.12",
    *("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http", "uvicorn", "aiosqlite"),
    *("torch==2.13.0", "transformers==4.55.4", "trl==0.19.1", "peft", "datasets"),
)
NUM_JOBS = 60
NUM_READS = 200
THEIR_JOBS = "/v1/post-training/jobs"
OUR_JOBS = "/v1/fine_tuning/jobs"
CONFIG = """\
version: '2'
image_name: bench
apis: [datasetio, post_training]
providers:
  datasetio:
  - provider_id: localfs
    provider_type: inline::localfs
    config: {kvstore: {type: sqlite, db_path: HOME/localfs.db}}
  post_training:
  - provider_id: huggingface
    provider_type: inline::huggingface
    config: {device: cpu, distributed_backend: null, checkpoint_format: huggingface}
metadata_store: {type: sqlite, db_path: HOME/registry.db}
"""
THEIR_ORDER = {
    "training_config": {
        "n_epochs": 1,
        "max_steps_per_epoch": 1,
        "gradient_accumulation_steps": 1,
        "data_config": {"dataset_id": "rows", "batch_size": 1, "shuffle": False, "data_format": "instruct"},
        "optimizer_config": {"optimizer_type": "adamw", "lr": 0.0001, "weight_decay": 0.0, "num_warmup_steps": 0},
    },
    "hyperparam_search_config": {},
    "logger_config": {},
    "model": TINY,
    "checkpoint_dir": "",
    "algorithm_config": {
        "type": "LoRA",
        "lora_attn_modules": ["q_proj"],
        "apply_lora_to_mlp": False,
        "apply_lora_to_output": False,
        "rank": 8,
        "alpha": 16,
    },
}


async def measure() -> None:
    python = peer_env("llama-stack", REQUIREMENTS) / "python"
    with tempfile.TemporaryDirectory(prefix="luthier-bench-", ignore_cleanup_errors=True) as folder:
        home, port = Path(folder), find_free_ports(1)[0]
        config = home / "run.yaml"
        config.write_text(CONFIG.replace("HOME", folder))
        command = (str(python), "-m", "llama_stack.distribution.server.server", "--config", str(config))
        env = {"HOME": folder, "HF_HUB_OFFLINE": "1", "PATH": str(python.parent)}
        async with (
            peer_server((*command, "--port", str(port)), port, home / "log", env=env),
            stack_of(["api"]) as stack,
        ):
            ours, theirs = await _our_deeds(stack), await _their_deeds(port)
            for name, do in ours.items():
                count = NUM_JOBS if name == "submit" else NUM_READS
                times_ms = await in_turn(count, do, theirs[name.removesuffix("_page_of_20")])
                report_spread(f"peers_llama_stack.{name}", times_ms[0], "ms", times_ms[1])


async def _their_deeds(port: int) -> dict[str, Do]:
    client = await Client.connect(port)

    async def submit(number: int) -> object:
        order = THEIR_ORDER | {"job_uuid": f"job-{number}"}
        return await client.post("/v1/post-training/supervised-fine-tune", json.dumps(order).encode(), "")

    async def status(number: int) -> object:
        return await client.get(f"/v1/post-training/job/status?job_uuid=job-{number % NUM_JOBS}")

    async def list_all(_number: int) -> object:
        return await client.get(THEIR_JOBS)

    return {"submit": submit, "status": status, "list": list_all}


async def _our_deeds(stack: Stack) -> dict[str, Do]:
    async with database_of(stack) as db:
        await db["bases"].insert_one({"_id": TINY, "name": TINY, "digest": "0", "aliases": [], "context_length": 256})
    (await Client.connect(stack.port)).close()  # from then on there is a key
    client = await Client.connect(stack.port, stack.admin_key)
    async with AsyncOpenAI(base_url=f"{stack.api_url}/v1", api_key=stack.admin_key) as sdk:
        file = await sdk.files.create(file=write_chat_file(stack.home / "rows.jsonl", 12), purpose="fine-tune")
    jobs: list[str] = []

    async def submit(number: int) -> object:
        order = {"model": TINY, "training_file": file.id, "seed": number}
        jobs.append(json.loads(await client.post(OUR_JOBS, json.dumps(order).encode(), stack.admin_key))["id"])
        return jobs

    async def status(number: int) -> object:
        return await client.get(f"{OUR_JOBS}/{jobs[number % NUM_JOBS]}")

    async def list_all(_number: int) -> object:
        return await client.get(f"{OUR_JOBS}?limit=100")

    async def list_page(_number: int) -> object:
        return await client.get(OUR_JOBS)

    return {"submit": submit, "status": status, "list": list_all, "list_page_of_20": list_page}


if __name__ == "__main__":
    run(measure)
