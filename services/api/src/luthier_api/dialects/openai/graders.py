"""`/v1/fine_tuning/alpha/graders`: check a grader, and try it on one answer of a model."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from litestar import Controller, post
from litestar.di import NamedDependency
from litestar.params import JSONBody
from pydantic import Field, StrictStr

from luthier_api.answers import while_connected
from luthier_api.deps import AnyRequest, Services
from luthier_api.dialects.openai.fields import Strict
from luthier_api.domain import Scope
from luthier_api.errors import ApiError, ErrorCode
from luthier_api.settings import MIB
from luthier_api.turns import Turns
from luthier_api.wire.graders import GraderRunObject, GraderValidObject, grader_run_object
from luthier_graders import (
    CannotGradeError,
    Grader,
    InvalidGraderError,
    MultiGrader,
    Result,
    Sample,
    grade,
    read_grader,
)

_T = TypeVar("_T")
MAX_BODY_BYTES = MIB
MAX_SAMPLE_BYTES = 64 * 1024
MAX_GRADINGS = 8
LIMIT_S = 30.0
"""The longest that a client waits for its turn and its grade together."""
_ONE_AT_A_TIME = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grader")
"""Similarity is pure computing: more threads would only keep other requests waiting."""
_TURNS = Turns(1, MAX_GRADINGS)


class ValidateGrader(Strict):
    """The body of a validate."""

    grader: dict[str, Any] = Field(description="string_check, text_similarity, python, score_model, label_model, multi")


class RunGrader(ValidateGrader):
    """The body of a run."""

    model_sample: StrictStr = Field(description="what a model answered: sample.output_text, and output_json if it is")
    item: dict[str, Any] | None = Field(None, description="the row that the grader sees as item")


class GradersController(Controller):
    path = "/fine_tuning/alpha/graders"
    tags = ("Graders",)

    @post(
        "/run",
        operation="run_grader",
        summary="Try a grader on one answer",
        scope=Scope.JOBS_READ,
        status_code=200,
        request_max_body_size=MAX_BODY_BYTES,
    )
    async def run(self, request: AnyRequest, data: JSONBody[RunGrader]) -> GraderRunObject:
        grader = known_grader(data.grader)
        if len(data.model_sample.encode("utf-8", "surrogatepass")) > MAX_SAMPLE_BYTES:
            message = f"model_sample is longer than {MAX_SAMPLE_BYTES} bytes."
            raise ApiError(ErrorCode.INVALID_VALUE, message, param="model_sample")
        work = partial(_grade, grader, Sample(data.model_sample), data.item or {})
        code = ErrorCode.TOO_MANY_GRADINGS
        with _TURNS.taken(request.user.project, ApiError(code, code.sentence)):
            result, execution_time_s = await while_connected(request, _in_turn(work))
        return grader_run_object(grader, result, execution_time_s)

    @post(
        "/validate",
        operation="validate_grader",
        summary="Check a grader",
        scope=Scope.JOBS_READ,
        status_code=200,
        request_max_body_size=MAX_BODY_BYTES,
    )
    async def validate(
        self,
        data: JSONBody[ValidateGrader],
        services: NamedDependency[Services],
    ) -> GraderValidObject:
        """The grader as it is understood: graders of a multi by name, whatever form they came in.

        A client that parses strictly has no type for these; it is answered null.
        """
        grader = known_grader(data.grader)
        return {"grader": None if services.view.is_strict and isinstance(grader, MultiGrader) else grader}


def known_grader(data: object, at: str = "grader") -> Grader:
    """The grader that a request describes; ApiError naming the path of what is wrong with it."""
    try:
        return read_grader(data, at)
    except InvalidGraderError as error:
        raise refused(error) from None


def refused(error: InvalidGraderError) -> ApiError:
    """How the API says what is wrong with a grader."""
    if error.kind == "missing":
        message = f"Missing required parameter: '{error.param}'."
        return ApiError(ErrorCode.MISSING_PARAMETER, message, param=error.param)
    if error.kind == "unknown":
        message = f"Unrecognized request argument supplied: {error.param}"
        return ApiError(ErrorCode.UNKNOWN_PARAMETER, message, param=error.param)
    message = f"Invalid value for '{error.param}': {error.message}"
    return ApiError(ErrorCode.INVALID_VALUE, message, param=error.param)


async def _in_turn(work: Callable[[], _T]) -> _T:
    """What the one thread makes of it. Work that nobody waits for any more is not begun."""
    try:
        async with asyncio.timeout(LIMIT_S):
            return await asyncio.get_running_loop().run_in_executor(_ONE_AT_A_TIME, work)
    except TimeoutError:
        raise ApiError(ErrorCode.GRADING_TIMEOUT, ErrorCode.GRADING_TIMEOUT.sentence) from None


def _grade(grader: Grader, sample: Sample, item: dict[str, Any]) -> tuple[Result, float]:
    """The result, and the seconds that it took."""
    began = time.perf_counter()
    try:
        result = grade(grader, sample, item)
    except CannotGradeError as error:
        code = ErrorCode.UNSUPPORTED_PARAMETER if error.kind == "unsupported" else ErrorCode.INVALID_VALUE
        raise ApiError(code, f"{error.param}: {error.message}", param=error.param) from None
    return result, time.perf_counter() - began
