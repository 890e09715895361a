"""What a grader answers. Clients of OpenAI know every key but those that begin with `x_`."""

from typing import TypedDict

from luthier_graders import Grader, Result


class GraderErrors(TypedDict):
    """What went wrong, by kind; `x_messages` say where. Kinds of graders that are not run here stay false."""

    formula_parse_error: bool
    invalid_variable_error: bool
    sample_parse_error: bool
    model_grader_parse_error: bool
    model_grader_refusal_error: bool
    model_grader_server_error: bool
    model_grader_server_error_details: str | None
    other_error: bool
    python_grader_runtime_error: bool
    python_grader_runtime_error_details: str | None
    python_grader_server_error: bool
    python_grader_server_error_type: str | None
    truncated_observation_error: bool
    unresponsive_reward_error: bool
    x_messages: list[str]


class GraderMetadata(TypedDict):
    name: str
    type: str
    errors: GraderErrors
    execution_time: float
    scores: dict[str, float | None]
    token_usage: int | None
    sampled_model_name: str | None


class GraderRunObject(TypedDict):
    """The reward is 0 where there is none; then an error is true."""

    reward: float
    sub_rewards: dict[str, float | None]
    metadata: GraderMetadata
    model_grader_token_usage_per_model: dict[str, int]


class GraderValidObject(TypedDict):
    """The grader as it is understood."""

    grader: Grader | None


def grader_run_object(grader: Grader, result: Result, execution_time_s: float) -> GraderRunObject:
    return {
        "reward": 0.0 if result.reward is None else result.reward,
        "sub_rewards": result.scores,
        "metadata": {
            "name": grader.name,
            "type": grader.type,
            "errors": _errors(result),
            "execution_time": execution_time_s,
            "scores": result.scores,
            "token_usage": None,
            "sampled_model_name": None,
        },
        "model_grader_token_usage_per_model": {},
    }


def _errors(result: Result) -> GraderErrors:
    kinds = {problem.kind for problem in result.problems}
    return {
        "formula_parse_error": "formula" in kinds,
        "invalid_variable_error": "invalid_variable" in kinds,
        "sample_parse_error": "sample_parse" in kinds,
        "model_grader_parse_error": False,
        "model_grader_refusal_error": False,
        "model_grader_server_error": False,
        "model_grader_server_error_details": None,
        "other_error": False,
        "python_grader_runtime_error": False,
        "python_grader_runtime_error_details": None,
        "python_grader_server_error": False,
        "python_grader_server_error_type": None,
        "truncated_observation_error": False,
        "unresponsive_reward_error": False,
        "x_messages": [f"{problem.param}: {problem.message}" for problem in result.problems],
    }
