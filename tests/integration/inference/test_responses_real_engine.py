"""Responses from a real engine: whole, streamed and continued."""

import json

import pytest
from pydantic import SecretStr

from integration.inference.conftest import TOKEN, RunningNode
from luthier_api.dialects.openai.response_body import CreateResponse, wanted_response
from luthier_api.domain import Principal, View
from luthier_api.errors import ApiError, ErrorCode
from luthier_api.services.engines import Engines
from luthier_api.services.models import ModelService
from luthier_api.services.responses import Again, ResponseService, WantedResponse
from luthier_api.store import PlatformStore, Repository
from luthier_api.store.responses import ResponseStore
from luthier_api.turns import Turns
from luthier_api.wire.responses import output_text
from luthier_common.kit.clock import SystemClock
from luthier_common.kit.generation import GenerationClient
from luthier_common.kit.mongo import Database

PRINCIPAL = Principal("key", "org-default", "default", "proj-default", "key", frozenset({"inference"}))


def _wanted(text: str, previous: str | None = None, **more: object) -> WantedResponse:
    body = {"model": "tiny", "input": text, "temperature": 0, "max_output_tokens": 8, **more}
    return wanted_response(CreateResponse.model_validate({**body, "previous_response_id": previous}))


async def test_whole_and_streamed_answers_agree_and_a_conversation_grows(db: Database, node: RunningNode) -> None:
    assert node.process.returncode is None
    repository = Repository(db, PRINCIPAL, "req_test")
    async with GenerationClient(SecretStr(TOKEN)) as client:
        engines = Engines(PlatformStore(db, node_ttl_s=30), client, Turns(8), PRINCIPAL.key_id)
        models = ModelService(repository, db)
        service = ResponseService(ResponseStore(repository), models, engines, SystemClock(), keep_s=60, again=Again())
        whole = await service.create(_wanted("Where is my parcel?"))
        assert whole["status"] in ("completed", "incomplete")
        usage = whole["usage"]
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
        assert 0 < usage["output_tokens"] <= 8
        events = [event async for event in await service.stream(_wanted("Where is my parcel?"), View())]
        last = json.loads(events[-1].split(b"data: ", 1)[1])
        assert last["response"]["output_text"] == output_text(whole)
        assert last["response"]["usage"] == usage
        grown = await service.create(_wanted("And now?", whole["_id"]))
        assert grown["usage"]["input_tokens"] > usage["input_tokens"]
        long = _wanted("parcel " * 5000, whole["_id"])
        with pytest.raises(ApiError) as caught:
            await service.create(long)
        assert caught.value.body()["error"]["param"] == "input"
        assert caught.value.error is ErrorCode.CONTEXT_LENGTH_EXCEEDED
