"""What a validation answers."""

from typing import Any, Literal, TypedDict

from luthier_api.services.validation import Mistake, Plan
from luthier_api.wire.jobs import shown_hyperparameters


class ValidationError(TypedDict):
    """One thing for which the job would be refused or fail. `line` counts from 1, in the file that `param` names."""

    code: str
    message: str
    param: str | None
    line: int | None


class ValidationObject(TypedDict):
    """`status` is `pending`, and `valid` null, while a file has not been read: ask again after `retry-after`.

    `hyperparameters` are those of the run, `auto` resolved; null while the number of examples is not known.
    `num_tokens` is of the training file, counted once, with the tokens of the default base.
    """

    object: Literal["fine_tuning.validation"]
    status: Literal["done", "pending"]
    valid: bool | None
    errors: list[ValidationError]
    hyperparameters: dict[str, Any] | None
    num_examples: int | None
    num_tokens: int | None
    estimated_steps: int | None


def validation_object(plan: Plan) -> ValidationObject:
    resolved = plan.resolved
    return {
        "object": "fine_tuning.validation",
        "status": "pending" if plan.is_pending else "done",
        "valid": False if plan.mistakes else None if plan.is_pending else True,
        "errors": [_error(mistake) for mistake in plan.mistakes],
        "hyperparameters": shown_hyperparameters(resolved.model_dump()) if resolved else None,
        "num_examples": plan.num_examples,
        "num_tokens": plan.num_tokens,
        "estimated_steps": resolved.total_steps if resolved else None,
    }


def _error(mistake: Mistake) -> ValidationError:
    return {
        "code": str(mistake.code),
        "message": mistake.message,
        "param": mistake.param,
        "line": mistake.line,
    }
