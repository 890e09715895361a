"""An answer may take longer than an engine may be silent."""

import pytest
from pydantic import SecretStr

from builders.engines import Engine, joined
from integration.api.conftest import TINY, Api
from luthier_common.kit.generation import EngineAwayError, GenerationClient

BODY = {"model": TINY, "base": TINY, "messages": [{"role": "user", "content": "hi"}]}
SILENCE_S = 3.0


async def test_a_long_answer_of_a_slow_engine_is_whole(api: Api) -> None:
    engine = Engine("engine-long", pieces=("a", "b", "c", "d", "e"), pace_s=SILENCE_S / 5)
    async with joined(api.db, engine, TINY), GenerationClient(SecretStr(""), read_timeout_s=SILENCE_S) as client:
        node = await api.db["nodes"].find_one({"_id": engine.name})
        assert node is not None
        answer = await client.complete(node["address"], BODY)
        assert answer["choices"][0]["message"]["content"] == "abcde"
        assert answer["usage"]["total_tokens"] == 2
        engine.hangs = True
        with pytest.raises(EngineAwayError):
            await client.complete(node["address"], BODY)
