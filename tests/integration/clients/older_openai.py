"""A story told with whatever openai library is on the path: `python older_openai.py URL KEY MODEL`. Prints JSON."""

import asyncio
import io
import json
import sys
import time
from typing import Any

import openai
from openai import AsyncOpenAI, OpenAI

LINE = b'{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yes"}]}\n'


def tell(url: str, key: str, model: str) -> dict[str, Any]:
    """Every method of files, jobs and models that the library of that time has."""
    sdk = OpenAI(base_url=url, api_key=key, _strict_response_validation=True)
    file = sdk.files.create(file=("old.jsonl", io.BytesIO(LINE * 20)), purpose="fine-tune")
    assert sdk.files.retrieve(file.id) == file
    assert file.id in [each.id for each in sdk.files.list(purpose="fine-tune")]
    assert sdk.files.content(file.id).read() == LINE * 20
    job = sdk.fine_tuning.jobs.create(
        model=model,
        training_file=file.id,
        suffix="old",
        metadata={"n": str(time.time_ns())},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
    )
    assert sdk.fine_tuning.jobs.retrieve(job.id) == job
    assert job.id in [each.id for each in sdk.fine_tuning.jobs.list(limit=2)]
    assert isinstance(sdk.fine_tuning.jobs.list_events(job.id, limit=5).data, list)
    assert sdk.fine_tuning.jobs.checkpoints.list(job.id).data == []
    assert model in [each.id for each in sdk.models.list()]
    assert sdk.models.retrieve(model).id == model
    try:
        sdk.fine_tuning.jobs.pause(job.id)
    except openai.ConflictError as error:
        refused = error.code
    cancelled = sdk.fine_tuning.jobs.cancel(job.id)
    assert sdk.files.delete(file.id).deleted
    return {"version": openai.__version__, "job": job.id, "refused": refused, "status": cancelled.status}


async def tell_async(url: str, key: str, model: str) -> str:
    """The same library's async half, in short."""
    async with AsyncOpenAI(base_url=url, api_key=key, _strict_response_validation=True) as sdk:
        file = await sdk.files.create(file=("old.jsonl", io.BytesIO(LINE * 20)), purpose="fine-tune")
        note = {"n": str(time.time_ns())}
        job = await sdk.fine_tuning.jobs.create(model=model, training_file=file.id, metadata=note)
        assert job.id in [each.id async for each in sdk.fine_tuning.jobs.list(limit=2)]
        return (await sdk.fine_tuning.jobs.cancel(job.id)).status


if __name__ == "__main__":
    told = tell(*sys.argv[1:])
    told["async_status"] = asyncio.run(tell_async(*sys.argv[1:]))
    print(json.dumps(told))
