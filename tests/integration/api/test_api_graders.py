"""Graders as the openai SDK runs and validates them."""

import asyncio
import json
from contextlib import suppress
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI, BadRequestError, PermissionDeniedError, RateLimitError
from openai.types.fine_tuning.alpha import GraderRunResponse
from openai.types.graders import ScoreModelGrader, StringCheckGrader

from builders.waiting import until

EXACT = {
    "type": "string_check",
    "name": "exact",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}
ALIKE = {
    "type": "text_similarity",
    "name": "alike",
    "input": "{{sample.output_json.said}}",
    "reference": "{{item.answer}}",
    "evaluation_metric": "rouge_1",
}
PYTHON = {"type": "python", "name": "code", "source": "def grade(sample, item):\n    return 1.0\n"}
SCORE = {
    "type": "score_model",
    "name": "judge",
    "model": "gpt-4o",
    "input": [{"role": "user", "content": [{"type": "input_text", "text": "{{sample.output_text}}"}]}],
    "sampling_params": {"max_completions_tokens": 16},
}
LABEL = {**SCORE, "type": "label_model", "labels": ["good", "bad"], "passing_labels": ["good"]}
del LABEL["sampling_params"]
MULTI = {
    "type": "multi",
    "name": "both",
    "graders": {"exact": EXACT, "alike": ALIKE},
    "calculate_output": "0.25 * exact + 0.75 * alike",
}


def strict_sdk(api: Any, **headers: str) -> AsyncOpenAI:
    client = AsyncOpenAI(
        base_url=f"{api.url}/v1",
        api_key=api.key,
        max_retries=0,
        default_headers=headers,
        _strict_response_validation=True,
    )
    api.opened.append(client)
    return client


async def run(client: AsyncOpenAI, grader: Any, sample: str, item: Any = None) -> GraderRunResponse:
    return await client.fine_tuning.alpha.graders.run(grader=grader, model_sample=sample, item=item or {})


async def refused(
    client: AsyncOpenAI, grader: Any, sample: str = "x", item: Any = None
) -> tuple[str | None, str | None]:
    with pytest.raises(BadRequestError) as caught:
        await run(client, grader, sample, item)
    return caught.value.param, caught.value.code


async def test_a_string_check_is_run(api: Any) -> None:
    answer = await run(strict_sdk(api), EXACT, "Paris", {"answer": "Paris"})
    assert (answer.reward, answer.sub_rewards) == (1, {})
    assert (answer.metadata.name, answer.metadata.type) == ("exact", "string_check")
    assert not any(answer.metadata.errors.model_dump(exclude={"x_messages"}).values())
    assert 0 <= answer.metadata.execution_time < 5


async def test_a_multi_is_run_and_says_what_each_grader_gave(api: Any) -> None:
    answer = await run(strict_sdk(api), MULTI, '{"said": "the cat"}', {"answer": "the dog"})
    assert answer.reward == 0.375
    assert answer.sub_rewards == answer.metadata.scores == {"exact": 0, "alike": 0.5}


async def test_what_a_template_does_not_find_is_said_in_the_answer(api: Any) -> None:
    answer = await run(strict_sdk(api), MULTI, "not JSON", {"question": "?"})
    errors = answer.metadata.errors
    assert answer.reward == 0
    assert (errors.invalid_variable_error, errors.sample_parse_error, errors.formula_parse_error) == (True, True, False)
    assert errors.model_dump()["x_messages"] == [
        "grader.graders.exact.reference: item.answer is not there",
        "grader.graders.alike.input: sample.output_json is not there: the answer is not JSON",
        "grader.graders.alike.reference: item.answer is not there",
    ]


async def test_a_formula_without_a_value_is_said_in_the_answer(api: Any) -> None:
    grader = {**MULTI, "graders": {"exact": EXACT}, "calculate_output": "1 / exact"}
    answer = await run(strict_sdk(api), grader, "x", {"answer": "y"})
    assert answer.metadata.errors.formula_parse_error
    assert answer.metadata.errors.model_dump()["x_messages"] == ["grader.calculate_output: divides by zero"]


async def test_what_cannot_be_run_is_refused_and_says_what_is_missing(api: Any) -> None:
    cosine = {**ALIKE, "evaluation_metric": "cosine"}
    refusals = {
        "grader.type": [PYTHON, SCORE, LABEL],
        "grader.evaluation_metric": [cosine],
        "grader.graders.a.type": [{**MULTI, "graders": {"a": PYTHON}, "calculate_output": "a"}],
    }
    for param, graders in refusals.items():
        for grader in graders:
            assert await refused(api.sdk(), grader) == (param, "unsupported_parameter")
    with pytest.raises(BadRequestError, match="cosine needs an embedding model"):
        await run(api.sdk(), cosine, "x")


@pytest.mark.parametrize("grader", [EXACT, ALIKE, PYTHON, SCORE], ids=lambda grader: grader["type"])
async def test_a_grader_is_validated(api: Any, grader: Any) -> None:
    answer = await strict_sdk(api).fine_tuning.alpha.graders.validate(grader=grader)
    assert answer.grader is not None
    assert answer.grader.model_dump(exclude_none=True) == grader


async def test_types_of_the_sdk_itself_are_understood(api: Any) -> None:
    graders = strict_sdk(api).fine_tuning.alpha.graders
    assert isinstance((await graders.validate(grader=EXACT)).grader, StringCheckGrader)  # type: ignore[arg-type]
    assert isinstance((await graders.validate(grader=SCORE)).grader, ScoreModelGrader)  # type: ignore[arg-type]


async def test_a_multi_is_answered_by_name_whatever_form_it_came_in(api: Any) -> None:
    formulas: list[tuple[Any, str]] = [
        ({"exact": EXACT, "alike": ALIKE}, "exact + alike"),
        ([EXACT, ALIKE], "exact + alike"),
        (EXACT, "exact"),
    ]
    for graders, formula in formulas:
        grader = {**MULTI, "graders": graders, "calculate_output": formula}
        async with api.http() as http:
            answer = await http.post("/v1/fine_tuning/alpha/graders/validate", json={"grader": grader})
        named = {each["name"]: each for each in ([EXACT, ALIKE] if "+" in formula else [EXACT])}
        assert answer.json() == {"grader": {**grader, "graders": named}}


async def test_a_multi_passes_a_strict_client_that_says_so(api: Any) -> None:
    client = strict_sdk(api, **{"x-luthier-strict": "true"})
    answer = await client.fine_tuning.alpha.graders.validate(grader=MULTI)  # type: ignore[arg-type]
    assert answer.grader is None


async def test_label_model_is_validated_too(api: Any) -> None:
    async with api.http() as http:
        answer = await http.post("/v1/fine_tuning/alpha/graders/validate", json={"grader": LABEL})
    assert answer.json() == {"grader": {**LABEL, "input": [{**LABEL["input"][0], "type": None}]}}


async def test_what_is_wrong_is_named_by_its_path(api: Any) -> None:
    in_multi = {**MULTI, "graders": {"a": {**EXACT, "operation": "neq"}}, "calculate_output": "a"}
    client = api.sdk()
    assert await refused(client, in_multi) == ("grader.graders.a.operation", "invalid_value")
    assert await refused(client, {**EXACT, "weight": 1}) == ("grader.weight", "unknown_parameter")
    assert await refused(client, {"type": "string_check"}) == ("grader.name", "missing_required_parameter")
    assert await refused(client, {**MULTI, "calculate_output": "exact +"}) == (
        "grader.calculate_output",
        "invalid_value",
    )
    with pytest.raises(BadRequestError) as caught:
        await client.fine_tuning.alpha.graders.validate(grader=in_multi)
    assert caught.value.param == "grader.graders.a.operation"
    assert "must be 'eq', 'ne', 'like' or 'ilike'" in caught.value.message


async def test_long_texts_are_refused(api: Any) -> None:
    client = api.sdk()
    assert await refused(client, EXACT, "x" * 70_000, {"answer": "x"}) == ("model_sample", "invalid_value")
    assert await refused(client, EXACT, "x", {"answer": "x" * 70_000}) == ("grader.reference", "invalid_value")


async def test_others_are_answered_while_a_long_text_is_graded(api: Any) -> None:
    grader = {**EXACT, "type": "text_similarity", "evaluation_metric": "meteor"}
    del grader["operation"]
    text = "running jumps " * 4500
    long = asyncio.create_task(run(api.sdk(), grader, text, {"answer": text}))
    async with api.http() as http:
        assert (await http.get("/healthz")).status_code == 200
    assert (await long).reward > 0.99


async def test_a_project_runs_one_grader_at_a_time(api: Any) -> None:
    """Another project's runs meanwhile; whoever left is not counted any more."""
    grader = {**EXACT, "type": "text_similarity", "evaluation_metric": "meteor"}
    del grader["operation"]
    text = "running jumps " * 4500
    other = await api.new_key("admin", project="proj-graders", org="org-graders")
    asked = [run(api.sdk(), grader, text, {"answer": text}) for _ in range(4)]
    asked.append(run(api.sdk(other), grader, "a", {"answer": "a"}))
    *mine, theirs = await asyncio.gather(*asked, return_exceptions=True)
    refused = [each for each in mine if isinstance(each, RateLimitError)]
    assert isinstance(theirs, GraderRunResponse)
    assert {each.code for each in refused} == {"too_many_gradings"}
    assert len(refused) < len(mine)
    await ask_and_leave(api, {"grader": grader, "model_sample": text, "item": {"answer": text}})

    async def graded() -> GraderRunResponse | None:
        with suppress(RateLimitError):
            return await run(api.sdk(), EXACT, "x", {"answer": "x"})
        return None

    assert (await until(graded, within_s=5)).reward == 1


async def ask_and_leave(api: Any, body: dict[str, Any]) -> None:
    """Send a whole request and close the connection behind it."""
    content, url = json.dumps(body).encode(), httpx2.URL(api.url)
    lines = [
        "POST /v1/fine_tuning/alpha/graders/run HTTP/1.1",
        f"host: {url.host}",
        f"authorization: Bearer {api.key}",
        "content-type: application/json",
        f"content-length: {len(content)}",
    ]
    _, writer = await asyncio.open_connection(url.host, url.port)
    writer.write("\r\n".join([*lines, "", ""]).encode() + content)
    await writer.drain()
    writer.close()
    await writer.wait_closed()


async def test_a_key_without_the_scope_is_refused(api: Any) -> None:
    client = api.sdk(await api.new_key("files:read"))
    with pytest.raises(PermissionDeniedError):
        await run(client, EXACT, "x", {"answer": "x"})


async def test_the_other_dialect_has_graders_too(api: Any) -> None:
    async with api.http() as http:
        body = {"grader": EXACT, "model_sample": "x", "item": {"answer": "x"}}
        answer = await http.post("/api/v1/llm/fine_tuning/alpha/graders/run", json=body)
    assert (answer.status_code, answer.json()["reward"]) == (200, 1)
