"""Every method that we serve, called by whatever openai library is on the path.

`python every_method.py HALF URL KEY GIVEN`: HALF is `sync` or `async`; GIVEN is JSON that names what a client cannot
bring about alone. Answers are parsed strictly. Prints the library's version.
"""

import asyncio
import inspect
import json
import sys
import time
from typing import Any

import openai
import pytest

LINE = b'{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yes"}]}\n'
STRICT = {"x-luthier-strict": "true"}
EXACT = {
    "type": "string_check",
    "name": "exact",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}


async def done(answer: Any) -> Any:
    """What either half answers."""
    return await answer if inspect.isawaitable(answer) else answer


async def items(answer: Any) -> list[Any]:
    """All that a stream tells, or that a page and those after it hold."""
    answer = await done(answer)
    return [each async for each in answer] if hasattr(answer, "__aiter__") else list(answer)


async def call_files(sdk: Any, _: dict[str, str]) -> None:
    file = await done(sdk.files.create(file=("train.jsonl", LINE * 20), purpose="fine-tune"))
    assert await done(sdk.files.retrieve(file.id)) == file
    assert file.id in [each.id for each in await items(sdk.files.list(purpose="fine-tune"))]
    assert (await done(sdk.files.content(file.id))).content == LINE * 20
    assert (await done(sdk.files.delete(file.id))).deleted


async def call_uploads(sdk: Any, _: dict[str, str]) -> None:
    wanted = {"bytes": len(LINE) * 2, "filename": "parts.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"}
    upload = await done(sdk.uploads.create(**wanted))
    parts = [await done(sdk.uploads.parts.create(upload.id, data=LINE)) for _ in range(2)]
    whole = await done(sdk.uploads.complete(upload.id, part_ids=[part.id for part in parts]))
    assert (whole.status, whole.file.bytes) == ("completed", len(LINE) * 2)
    other = await done(sdk.uploads.create(**wanted))
    assert (await done(sdk.uploads.cancel(other.id))).status == "cancelled"


async def call_jobs(sdk: Any, given: dict[str, str]) -> None:
    jobs, note = sdk.fine_tuning.jobs, {"n": str(time.time_ns())}
    file = await done(sdk.files.create(file=("train.jsonl", LINE * 20), purpose="fine-tune"))
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}}
    job = await done(jobs.create(model=given["base"], training_file=file.id, metadata=note, method=method))
    assert await done(jobs.retrieve(job.id)) == job
    assert await items(jobs.list(metadata=note)) == [job]
    paused = await done(jobs.pause(given["waiting"], extra_headers=STRICT))
    assert (paused.status, paused.x_state) == ("queued", "paused")
    assert (await done(jobs.resume(given["waiting"]))).status == "queued"
    assert (await done(jobs.cancel(given["waiting"]))).status == "cancelled"
    with pytest.raises(openai.ConflictError) as refused:
        await done(jobs.resume(given["waiting"]))
    assert refused.value.code == "invalid_state"
    events = await items(jobs.list_events(given["trained"], limit=5))
    assert {"message", "metrics"} == {event.type for event in events}
    assert [each.step_number for each in await items(jobs.checkpoints.list(given["trained"]))] == [3]


async def call_permissions(sdk: Any, given: dict[str, str]) -> None:
    permissions, name = sdk.fine_tuning.checkpoints.permissions, given["checkpoint"]
    (made,) = await items(permissions.create(name, project_ids=["proj-default"]))
    assert (made.object, made.project_id) == ("checkpoint.permission", "proj-default")
    assert [each.id for each in (await done(permissions.retrieve(name))).data] == [made.id]
    if hasattr(permissions, "list"):  # since 2.0
        assert [each.id for each in await items(permissions.list(name))] == [made.id]
    assert (await done(permissions.delete(made.id, fine_tuned_model_checkpoint=name))).deleted


async def call_graders(sdk: Any, _: dict[str, str]) -> None:
    graders = sdk.fine_tuning.alpha.graders
    assert (await done(graders.validate(grader=EXACT))).grader.model_dump() == EXACT
    graded = await done(graders.run(grader=EXACT, model_sample="Paris", item={"answer": "Paris"}))
    assert (graded.reward, graded.metadata.name) == (1, "exact")


async def call_models(sdk: Any, given: dict[str, str]) -> None:
    assert {given["base"], given["tuned"]} <= {each.id for each in await items(sdk.models.list())}
    assert (await done(sdk.models.retrieve(given["tuned"]))).object == "model"
    assert (await done(sdk.models.delete(given["tuned"]))).deleted


async def call_chat(sdk: Any, given: dict[str, str]) -> None:
    asked = {"model": given["base"], "messages": [{"role": "user", "content": "hi"}]}
    whole = await done(sdk.chat.completions.create(**asked))
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (given["said"], "stop")
    chunks = await items(sdk.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(choice.delta.content for chunk in chunks for choice in chunk.choices) == given["said"]
    assert chunks[-1].usage.total_tokens == 2


async def call_responses(sdk: Any, given: dict[str, str]) -> None:
    made = await done(sdk.responses.create(model=given["base"], input="hi"))
    assert (made.status, made.output_text) == ("completed", given["said"])
    assert await done(sdk.responses.retrieve(made.id)) == made
    told = await items(sdk.responses.create(model=given["base"], input="hi", stream=True))
    assert "".join(event.delta for event in told if event.type == "response.output_text.delta") == given["said"]
    assert (told[0].type, told[-1].type) == ("response.created", "response.completed")
    await done(sdk.responses.delete(made.id))
    with pytest.raises(openai.NotFoundError):
        await done(sdk.responses.retrieve(made.id))


CALLS = (call_files, call_uploads, call_jobs, call_permissions, call_graders, call_models, call_chat, call_responses)


async def tell(half: str, url: str, key: str, given: str) -> None:
    make: Any = {"sync": openai.OpenAI, "async": openai.AsyncOpenAI}[half]
    sdk = make(base_url=url, api_key=key, max_retries=0, _strict_response_validation=True)
    for call in CALLS:
        await call(sdk, json.loads(given))
    await done(sdk.close())


if __name__ == "__main__":
    asyncio.run(tell(*sys.argv[1:]))
    print(openai.__version__)
