"""MKA1's guide "Fine-tune a model", step by step: its curl and Python examples as text, run as they stand.

Changed are only the host (for Python: the argument that names it), the key, the model, and the ids of files and jobs.
"""

import asyncio
import gc
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import meetkai_mka1
import pytest

from builders.stories import queue, succeed, train
from builders.waiting import until
from integration.api.conftest import TINY, Api
from integration.clients.conftest import LINE

pytestmark = pytest.mark.filterwarnings("ignore:warning. .. DEPRECATED:DeprecationWarning")
"""The library itself says so of its fine-tuning methods."""
JOB_ID = "ftjob_aa87e2b1112a455b8deabed784372198"
SDK_LINE = 'sdk = SDK(bearer_auth="Bearer YOUR_API_KEY")'

UPLOAD_CURL = """
curl https://apigw.mka1.com/api/v1/llm/files \\
  --request POST \\
  --header 'Authorization: Bearer <mka1-api-key>' \\
  --header 'X-On-Behalf-Of: <end-user-id>' \\
  --form 'file=@./fine-tuning-train.jsonl;type=application/jsonl' \\
  --form 'purpose=fine-tune'
"""
CREATE_CURL = """
curl https://apigw.mka1.com/api/v1/llm/fine_tuning/jobs \\
  --request POST \\
  --header 'Content-Type: application/json' \\
  --header 'Authorization: Bearer <mka1-api-key>' \\
  --header 'X-On-Behalf-Of: <end-user-id>' \\
  --data '{
    "model": "meetkai:functionary-medium",
    "training_file": "file_abc123",
    "validation_file": "file_def456",
    "suffix": "support-bot",
    "seed": 42,
    "method": {
      "type": "supervised",
      "supervised": {
        "hyperparameters": {
          "n_epochs": 3
        }
      }
    },
    "metadata": {
      "experiment": "support-bot-v1"
    }
  }'
"""
RETRIEVE_CURL = """
curl https://apigw.mka1.com/api/v1/llm/fine_tuning/jobs/ftjob_aa87e2b1112a455b8deabed784372198 \\
  --header 'Authorization: Bearer <mka1-api-key>' \\
  --header 'X-On-Behalf-Of: <end-user-id>'
"""
EVENTS_CURL = """
curl "https://apigw.mka1.com/api/v1/llm/fine_tuning/jobs/ftjob_aa87e2b1112a455b8deabed784372198/events?limit=20" \\
  --header 'Authorization: Bearer <mka1-api-key>' \\
  --header 'X-On-Behalf-Of: <end-user-id>'
"""
CHECKPOINTS_CURL = """
curl "https://apigw.mka1.com/api/v1/llm/fine_tuning/jobs/ftjob_aa87e2b1112a455b8deabed784372198/checkpoints?limit=10" \\
  --header 'Authorization: Bearer <mka1-api-key>' \\
  --header 'X-On-Behalf-Of: <end-user-id>'
"""
VERB_CURL = """
curl https://apigw.mka1.com/api/v1/llm/fine_tuning/jobs/ftjob_aa87e2b1112a455b8deabed784372198/VERB \\
  --request POST \\
  --header 'Authorization: Bearer <mka1-api-key>' \\
  --header 'X-On-Behalf-Of: <end-user-id>'
"""

UPLOAD = """
from mka1 import SDK

sdk = SDK(bearer_auth="Bearer YOUR_API_KEY")

training_file = sdk.llm.files.upload(
    file={"file_name": "fine-tuning-train.jsonl", "content": open("./fine-tuning-train.jsonl", "rb")},
    purpose="fine-tune",
)

validation_file = sdk.llm.files.upload(
    file={"file_name": "fine-tuning-validation.jsonl", "content": open("./fine-tuning-validation.jsonl", "rb")},
    purpose="fine-tune",
)

print(training_file.id)
print(validation_file.id)
"""
CREATE = """
job = sdk.llm.fine_tuning.create(
    model="meetkai:functionary-medium",
    training_file=training_file.id,
    validation_file=validation_file.id,
    suffix="support-bot",
    seed=42,
    method={
        "type": "supervised",
        "supervised": {
            "hyperparameters": {
                "n_epochs": 3,
            },
        },
    },
    metadata={"experiment": "support-bot-v1"},
)

print(job.id)                # "ftjob_aa87e2b1112a455b8deabed784372198"
print(job.status)            # "validating_files" | "queued" | "running" | ...
print(job.fine_tuned_model)  # None until the job succeeds
"""
POLL = """
import time

def wait_for_fine_tuning_job(sdk, job_id, timeout_ms=30 * 60_000):
    terminal = {"succeeded", "failed", "cancelled"}
    start = time.time() * 1000

    while (time.time() * 1000) - start < timeout_ms:
        current = sdk.llm.fine_tuning.retrieve(fine_tuning_job_id=job_id)
        if current.status in terminal:
            return current
        time.sleep(10)

    raise TimeoutError(f"Fine-tuning job {job_id} did not finish in time")

completed_job = wait_for_fine_tuning_job(sdk, job.id)

if completed_job.status == "succeeded":
    print(completed_job.fine_tuned_model)
else:
    print(completed_job.error)
"""
EVENTS = """
events = sdk.llm.fine_tuning.list_events(
    fine_tuning_job_id=job.id,
    limit=20,
)

for event in events.data:
    print(event.created_at, event.level, event.message, event.data)

checkpoints = sdk.llm.fine_tuning.list_checkpoints(
    fine_tuning_job_id=job.id,
    limit=10,
)

for checkpoint in checkpoints.data:
    print(checkpoint.step_number, checkpoint.fine_tuned_model_checkpoint, checkpoint.metrics)
"""
PAUSE = "sdk.llm.fine_tuning.pause(fine_tuning_job_id=job.id)"
RESUME = "sdk.llm.fine_tuning.resume(fine_tuning_job_id=job.id)"
CANCEL = "sdk.llm.fine_tuning.cancel(fine_tuning_job_id=job.id)"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of who follows the guide: two data files lie there."""
    (tmp_path / "fine-tuning-train.jsonl").write_bytes(LINE * 20)
    (tmp_path / "fine-tuning-validation.jsonl").write_bytes(LINE * 12)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Shell:
    """Runs the guide's command lines with this installation's host, key, model and ids."""

    def __init__(self, api: Api, folder: Path) -> None:
        self._folder = folder
        self.ids = {
            "https://apigw.mka1.com": api.url,
            "<mka1-api-key>": api.key,
            "<end-user-id>": "user-7",
            "meetkai:functionary-medium": TINY,
        }

    async def __call__(self, text: str) -> Any:
        for theirs, ours in self.ids.items():
            text = text.replace(theirs, ours)
        process = await asyncio.create_subprocess_exec(
            "bash", "-c", text, cwd=self._folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        output, _ = await process.communicate()
        assert process.returncode == 0
        return json.loads(output)


async def test_the_command_lines(api: Api, folder: Path) -> None:
    shell = Shell(api, folder)
    shell.ids["file_abc123"] = (await shell(UPLOAD_CURL))["id"]
    shell.ids["file_def456"] = (await shell(UPLOAD_CURL.replace("-train.", "-validation.")))["id"]
    assert re.fullmatch(r"file_[0-9a-z]+", shell.ids["file_abc123"])
    job = await shell(CREATE_CURL)
    assert (job["status"], job["seed"], job["suffix"]) == ("validating_files", 42, "support-bot")
    shell.ids[JOB_ID] = job["id"]
    await queue(api.db, job["id"])
    assert (await shell(VERB_CURL.replace("VERB", "pause")))["status"] == "paused"
    assert (await shell(VERB_CURL.replace("VERB", "resume")))["status"] == "queued"
    assert (await shell(VERB_CURL.replace("VERB", "cancel")))["status"] == "cancelled"
    assert (await shell(RETRIEVE_CURL))["status"] == "cancelled"
    assert (await shell(CHECKPOINTS_CURL))["data"] == []

    async def cancelled() -> bool:
        return "cancelled" in (await shell(EVENTS_CURL))["data"][0]["message"]

    await until(cancelled, every_s=0.1)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
async def test_the_python_examples(
    api: Api, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The guide's name of the package is not the one that it is published under.
    monkeypatch.setitem(sys.modules, "mka1", meetkai_mka1)
    names: dict[str, Any] = {}

    async def follow(text: str) -> str:
        text = text.replace(SDK_LINE, f'sdk = SDK(bearer_auth="Bearer {api.key}", server_url="{api.url}")')
        text = text.replace("meetkai:functionary-medium", TINY)
        await asyncio.to_thread(exec, text, names)  # the guide's own text
        return capsys.readouterr().out

    assert len((await follow(UPLOAD)).split()) == 2
    gc.collect()  # the guide leaves its files open
    assert (await follow(CREATE)).split()[1:] == ["validating_files", "None"]
    await queue(api.db, names["job"].id)
    for verb in (PAUSE, RESUME, CANCEL):
        await follow(verb)
    assert (await follow(POLL)).strip() == "None"
    first, made_at = names["job"].id, time.time()
    await follow(CREATE.replace("support-bot-v1", f"support-bot-{made_at}"))
    assert names["job"].id != first
    await succeed(api.db, await train(api.db, names["job"].id), f"ft:guide:{first[-8:]}")
    assert (await follow(POLL)).strip() == f"ft:guide:{first[-8:]}"

    async def followed() -> bool:
        told = await follow(EVENTS)
        return "The job has successfully completed" in told and "train_loss=0.5" in told

    await until(followed, every_s=0.2)
