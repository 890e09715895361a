"""Whatever is sent, the answer is one that the OpenAPI document promises: never a 5xx of ours, never another shape."""

import itertools
import re
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from openai import OpenAI
from schemathesis import checks
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from integration.api.conftest import TINY, Api
from luthier_api.reference import make_hollow_app

LINE = b'{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yes"}]}\n'
CONFORMANCE = [status_code_conformance, content_type_conformance, response_schema_conformance]
AWAY = (503, "engine_unavailable")
"""No engine runs here; everything else with a status of 500 or more is a fault."""
NEVER_ENDING = {"follow_fine_tuning_events", "mka1_follow_fine_tuning_events"}
"""What answers as long as a job lives: asked for jobs that are not there."""
COSTLY = {"mka1_create_fine_tuning_job", "mka1_validate_fine_tuning_job", "mka1_create_response"}
"""Their bodies take long to make up, and are read as those of the first dialect."""
described: dict[str, Any] = make_hollow_app().openapi_schema.to_schema()
document = schemathesis.openapi.from_dict(described)
openai_dialect = document.include(path_regex="^/v1/")
mka1_dialect = document.include(path_regex="^/api/v1/llm/").exclude(operation_id=sorted(COSTLY))
few = settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


fewer = settings(few, max_examples=2)


@pytest.fixture(scope="session")
def real(api: Api) -> dict[str, str]:
    """Ids of things that exist, by the names of path parameters."""
    with OpenAI(base_url=f"{api.url}/v1", api_key=api.key) as sdk:
        file = sdk.files.create(file=("train.jsonl", LINE * 12), purpose="fine-tune")
        job = sdk.fine_tuning.jobs.create(model=TINY, training_file=file.id)
        upload = sdk.uploads.create(bytes=4, filename="u.jsonl", mime_type="text/plain", purpose="fine-tune")
    return {"file_id": file.id, "job_id": job.id, "upload_id": upload.id, "model": f"/{TINY}"}


@pytest.fixture(scope="session")
def turns() -> Iterator[int]:
    """Things that exist and things that do not, by turns."""
    return itertools.count()


def send(case: schemathesis.Case[Any], api: Api, known: dict[str, str]) -> None:
    if case.method != "DELETE" and case.operation.definition.raw["operationId"] not in NEVER_ENDING:
        case.path_parameters = {name: known.get(name, value) for name, value in (case.path_parameters or {}).items()}
    headers = {"authorization": f"Bearer {api.key}"}
    answer = case.call(base_url=api.url, headers=headers, timeout=30)
    is_away = answer.status_code >= 500 and (answer.status_code, answer.json()["error"]["code"]) == AWAY
    case.validate_response(answer, checks=CONFORMANCE if is_away else [checks.not_a_server_error, *CONFORMANCE])


def test_what_is_named_here_is_in_the_document(real: dict[str, str]) -> None:
    names = {operation["operationId"] for methods in described["paths"].values() for operation in methods.values()}
    parameters = {name for path in described["paths"] for name in re.findall(r"{(\w+)}", path)}
    assert names >= NEVER_ENDING | COSTLY
    assert parameters >= set(real)


@openai_dialect.parametrize()
@few
def test_every_operation(case: schemathesis.Case[Any], api: Api, real: dict[str, str], turns: Iterator[int]) -> None:
    send(case, api, real if next(turns) % 2 else {})


@mka1_dialect.parametrize()
@fewer
def test_every_operation_of_the_other_dialect(
    case: schemathesis.Case[Any], api: Api, real: dict[str, str], turns: Iterator[int]
) -> None:
    send(case, api, real if next(turns) % 2 else {})
