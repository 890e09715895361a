"""What `POST /v1/fine_tuning/jobs` may say, with the tolerances for Nebius and kluster, and what it means. Pure."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, StrictStr

from luthier_api.dialects.openai.fields import Metadata, Seed, Strict
from luthier_api.dialects.openai.graders import known_grader
from luthier_api.dialects.openai.methods import (
    HyperparametersIn,
    IntegrationIn,
    Integrations,
    MethodIn,
    MethodName,
    names_of,
    places_of,
)
from luthier_api.domain import is_suffix
from luthier_api.errors import ApiError, ErrorCode
from luthier_api.services.jobs import WantedJob
from luthier_common.contract.ids import canonical_id
from luthier_common.contract.spec import Hyperparameters


class CreateJob(Strict):
    """The body of a create. Fields that say `Extension` are ours; OpenAI's clients send them by `extra_body`."""

    model: StrictStr = Field(description="The base model, by its name or an alias.", examples=["SmolLM2-135M-Instruct"])
    training_file: StrictStr = Field(
        description="The id of an uploaded file, with `-` or `_`; else the exact name of one, then the newest is taken."
    )
    validation_file: StrictStr | None = Field(None, description="As training_file, and not the same file.")
    suffix: StrictStr | None = Field(
        None, description="1 to 64 of A-Z a-z 0-9 . _ - that the model's name will hold.", examples=["support-bot"]
    )
    nickname: StrictStr | None = Field(None, description="kluster's word for suffix.")
    seed: Seed = Field(None, description="Any whole number within 2^53 of zero; chosen if not given.", examples=[42])
    metadata: Metadata = Field(
        None, description="At most 16 pairs; keys of at most 64, values of at most 512 characters."
    )
    method: MethodIn | None = Field(
        None, examples=[{"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}}]
    )
    hyperparameters: HyperparametersIn | None = Field(
        None, description="As method.supervised.hyperparameters; where both stand they must agree."
    )
    integrations: Integrations | None = Field(None, description="Checked, then refused: none can be reached yet.")
    model_selection: Literal["last", "best"] | None = Field(
        None, description="Extension: which checkpoint becomes the model. `last`, as when not given; `best` is refused."
    )


def wanted_job(data: CreateJob) -> WantedJob:
    """What the request asks for; raises ApiError for what cannot be honoured."""
    suffix = _suffix(data)
    _check_files(data)
    _refuse_integrations(data)
    if data.model_selection == "best":
        message = "The selection of the best checkpoint is not supported; the last one becomes the model."
        raise ApiError(ErrorCode.UNSUPPORTED_PARAMETER, message, param="model_selection")
    return WantedJob(
        model=data.model,
        training_file=data.training_file,
        validation_file=data.validation_file,
        suffix=suffix,
        seed=data.seed,
        metadata=data.metadata,
        hyperparameters=_hyperparameters(data),
        given_at=_given_at(data),
    )


def _check_files(data: CreateJob) -> None:
    if data.validation_file is not None and canonical_id(data.validation_file) == canonical_id(data.training_file):
        message = "The validation file must be another one than the training file."
        raise ApiError(ErrorCode.INVALID_VALUE, message, param="validation_file")


def _refuse_integrations(data: CreateJob) -> None:
    for number, integration in enumerate(data.integrations or ()):
        _check_integration(f"integrations[{number}]", integration)
    if data.integrations:
        message = f"The integration {data.integrations[0].type} is not supported."
        raise ApiError(ErrorCode.UNSUPPORTED_PARAMETER, message, param="integrations")


def _check_integration(place: str, integration: IntegrationIn) -> None:
    for name in ("wandb", "hf"):
        is_given, is_wanted = getattr(integration, name) is not None, integration.type == name
        if is_wanted and not is_given:
            message = f"Missing required parameter: '{place}.{name}'."
            raise ApiError(ErrorCode.MISSING_PARAMETER, message, param=f"{place}.{name}")
        if is_given and not is_wanted:
            message = f"{place}.{name} cannot be used with the type {integration.type}."
            raise ApiError(ErrorCode.CONFLICTING_PARAMETERS, message, param=f"{place}.{name}")


def _suffix(data: CreateJob) -> str | None:
    if data.suffix is not None and data.nickname is not None and data.suffix != data.nickname:
        message = "suffix and nickname mean the same and differ."
        raise ApiError(ErrorCode.CONFLICTING_PARAMETERS, message, param="nickname")
    suffix = data.nickname if data.suffix is None else data.suffix
    if suffix is not None and not is_suffix(suffix):
        param = "nickname" if data.suffix is None else "suffix"
        message = f"{param} must be 1 to 64 of the characters A-Z a-z 0-9 . _ -"
        raise ApiError(ErrorCode.INVALID_VALUE, message, param=param)
    return suffix


def _hyperparameters(data: CreateJob) -> Hyperparameters:
    method = data.method.type if data.method else "supervised"
    _refuse_other_payloads(data.method)
    merged, given_at = _merged(data, method), _given_at(data)
    _refuse_both(merged, given_at, "learning_rate", "learning_rate_multiplier")
    _refuse_both(merged, given_at, "warmup_ratio", "warmup_steps")
    if merged.get("lora") is False:
        message = "Full fine-tuning is not supported: no engine serves its models yet. Leave lora out, or true."
        raise ApiError(ErrorCode.UNSUPPORTED_PARAMETER, message, param=given_at["lora"])
    if method == "reinforcement":
        _check_reinforcement(data)
    if method != "supervised":
        message = f"The method {method} is not supported yet; use supervised."
        raise ApiError(ErrorCode.UNSUPPORTED_METHOD, message, param="method")
    return Hyperparameters(**merged)


def _refuse_other_payloads(method: MethodIn | None) -> None:
    for name in ("supervised", "dpo", "reinforcement"):
        if method is not None and name != method.type and getattr(method, name) is not None:
            message = f"method.{name} cannot be used with the method {method.type}."
            raise ApiError(ErrorCode.CONFLICTING_PARAMETERS, message, param=f"method.{name}")


def _merged(data: CreateJob, method: MethodName) -> dict[str, Any]:
    """Top level, nested and flat together: the same name with two values is a conflict."""
    merged: dict[str, Any] = {}
    for place, values in places_of(data.method, data.hyperparameters):
        for name, value in values.items():
            if name not in names_of(method):
                message = f"{place}.{name} is no hyperparameter of the method {method}."
                raise ApiError(ErrorCode.UNSUPPORTED_PARAMETER, message, param=f"{place}.{name}")
            if merged.setdefault(name, value) != value:
                message = f"{place}.{name} differs from the same hyperparameter given elsewhere."
                raise ApiError(ErrorCode.CONFLICTING_PARAMETERS, message, param=f"{place}.{name}")
    return merged


def _given_at(data: CreateJob) -> dict[str, str]:
    """Where in the body each hyperparameter stands."""
    places = places_of(data.method, data.hyperparameters)
    return {name: f"{place}.{name}" for place, values in places for name in values}


def _check_reinforcement(data: CreateJob) -> None:
    """A job of this method needs a grader that can be read, and rows to be judged by."""
    assert data.method is not None
    if data.method.reinforcement is None:
        message = "Missing required parameter: 'method.reinforcement'."
        raise ApiError(ErrorCode.MISSING_PARAMETER, message, param="method.reinforcement")
    if data.validation_file is None:
        message = "The method reinforcement needs a validation file."
        raise ApiError(ErrorCode.MISSING_PARAMETER, message, param="validation_file")
    known_grader(data.method.reinforcement.grader, "method.reinforcement.grader")


def _refuse_both(values: Mapping[str, Any], given_at: Mapping[str, str], first: str, second: str) -> None:
    if first in values and values.get(second, "auto") != "auto":
        message = f"{first} and {second} exclude each other."
        raise ApiError(ErrorCode.CONFLICTING_PARAMETERS, message, param=given_at[first])
