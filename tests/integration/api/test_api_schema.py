"""Whatever is sent, the answer is one that the OpenAPI document promises: never a 5xx of ours, never another shape."""

import itertools
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
CHECKS = [checks.not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
AWAY = "engine_unavailable"
NEVER_ENDING = "stream_fine_tuning_events"
document = schemathesis.openapi.from_dict(make_hollow_app().openapi_schema.to_schema())
openai_dialect = document.include(path_regex="^/v1/").exclude(operation_id=NEVER_ENDING)
mka1_dialect = document.include(path_regex="^/api/v1/llm/", method="GET").exclude(operation_id=f"mka1_{NEVER_ENDING}")
few = settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="session")
def real(api: Api) -> dict[str, str]:
    """Ids of things that exist, by the names of path parameters."""
    with OpenAI(base_url=f"{api.url}/v1", api_key=api.key) as sdk:
        file = sdk.files.create(file=("train.jsonl", LINE * 12), purpose="fine-tune")
        job = sdk.fine_tuning.jobs.create(model=TINY, training_file=file.id)
    return {"file_id": file.id, "job_id": job.id, "model": f"/{TINY}"}


@pytest.fixture(scope="session")
def turns() -> Iterator[int]:
    """Things that exist and things that do not, by turns."""
    return itertools.count()


def send(case: schemathesis.Case, api: Api, known: dict[str, Any]) -> None:
    if case.method != "DELETE":
        case.path_parameters = {name: known.get(name, value) for name, value in (case.path_parameters or {}).items()}
    headers = {"authorization": f"Bearer {api.key}"}
    answer = case.call(base_url=api.url, headers=headers, timeout=30)
    if answer.status_code == 503 and AWAY in answer.text:
        return
    case.validate_response(answer, checks=CHECKS)


@openai_dialect.parametrize()
@few
def test_every_operation(case: schemathesis.Case, api: Api, real: dict[str, str], turns: Iterator[int]) -> None:
    send(case, api, real if next(turns) % 2 else {})


@mka1_dialect.parametrize()
@few
def test_what_the_other_dialect_shows(case: schemathesis.Case, api: Api, real: dict[str, str]) -> None:
    send(case, api, real)
