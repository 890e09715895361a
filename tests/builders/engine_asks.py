"""Questions to an engine, and its answers."""

import asyncio
from typing import Any

from luthier_inference.domain import Generation, Sampling
from luthier_inference.engine.generation import Engine


def ask(engine: Engine, text: str, project: str | None = None, adapter: str | None = None, **given: Any) -> Generation:
    ids = tuple(engine.text.prompt_ids([{"role": "user", "content": text}]))
    sampling = Sampling(**{"max_tokens": 24, "temperature": 0.0, **given})
    return Generation(ids, adapter, sampling, project)


async def answer(engine: Engine, asked: Generation) -> str:
    return "".join([delta.text async for delta in engine.generate(asked)])


async def answer_all(engine: Engine, asked: list[Generation]) -> list[Any]:
    """What each says, or the error that ended it."""
    async with asyncio.timeout(60):
        return await asyncio.gather(*(answer(engine, one) for one in asked), return_exceptions=True)
