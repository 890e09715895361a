"""What `POST /v1/fine_tuning/jobs` may say, with the tolerances for Nebius and kluster, and what it means. Pure."""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, StrictBool, StrictStr

from luthier_api.domain import is_suffix
from luthier_api.errors import ApiError, ErrorCode
from luthier_api.services.jobs import WantedJob
from luthier_common.contract.spec import Hyperparameters

MAX_WHOLE = 2**53
"""Larger whole numbers are not exact in every client, and beyond 64 bits no database takes them."""
MAX_METADATA = 16
MAX_METADATA_KEY = 64
MAX_METADATA_VALUE = 512
_HUGE = 1e300


def _number(
    low: float, high: float = math.inf, *, whole: bool = False, auto: bool = False, above: bool = False
) -> Callable[[Any], Any]:
    """A check of a JSON number in a range; null means: not given. `above` excludes the lower end."""
    high = min(high, MAX_WHOLE) if whole else high
    words = [
        *(["'auto' or"] if auto else []),
        "a whole number" if whole else "a number",
        f"{'above' if above else 'from'} {low:g}",
        *([f"to {high:g}"] if high < math.inf else []),
    ]

    def check(value: Any) -> Any:
        if value is None or (auto and value == "auto"):
            return value
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _HUGE
        if not is_number or (whole and value != int(value)) or not low <= value <= high or (above and value == low):
            raise ValueError(f"must be {' '.join(words)}")
        return int(value) if whole else float(value)

    return check


def _metadata(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or len(value) > MAX_METADATA:
        raise ValueError(f"must be an object with at most {MAX_METADATA} pairs")
    for key, text in value.items():
        if not isinstance(key, str) or len(key) > MAX_METADATA_KEY:
            raise ValueError(f"keys must have at most {MAX_METADATA_KEY} characters")
        if not isinstance(text, str) or len(text) > MAX_METADATA_VALUE:
            raise ValueError(f"values must be strings of at most {MAX_METADATA_VALUE} characters")
    return value


class Strict(BaseModel):
    """A request: unknown fields are refused, and errors never repeat what was sent."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


AutoInt = int | Literal["auto"] | None
AutoFloat = float | Literal["auto"] | None
Share = Annotated[float | None, PlainValidator(_number(0, 1))]


class HyperparametersIn(Strict):
    """Hyperparameters of a supervised job; null means: not given."""

    n_epochs: Annotated[AutoInt, PlainValidator(_number(1, 50, whole=True, auto=True))] = None
    batch_size: Annotated[AutoInt, PlainValidator(_number(1, 256, whole=True, auto=True))] = None
    learning_rate_multiplier: Annotated[AutoFloat, PlainValidator(_number(0, auto=True, above=True))] = None
    learning_rate: Annotated[float | None, PlainValidator(_number(0, above=True))] = None
    warmup_ratio: Share = None
    warmup_steps: Annotated[int | None, PlainValidator(_number(0, whole=True))] = None
    weight_decay: Annotated[float | None, PlainValidator(_number(0))] = None
    max_grad_norm: Annotated[float | None, PlainValidator(_number(0))] = None
    lora: StrictBool | None = None
    lora_r: Annotated[int | None, PlainValidator(_number(1, 128, whole=True))] = None
    lora_alpha: Annotated[int | None, PlainValidator(_number(1, whole=True))] = None
    lora_dropout: Share = None
    context_length: Annotated[int | None, PlainValidator(_number(2, whole=True))] = None
    packing: StrictBool | None = None


class SupervisedIn(HyperparametersIn):
    """`method.supervised`: nested hyperparameters as OpenAI has them, or flat as kluster sends them."""

    hyperparameters: HyperparametersIn | None = None


class MethodIn(Strict):
    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: SupervisedIn | None = None
    dpo: dict[str, Any] | None = None
    reinforcement: dict[str, Any] | None = None


class CreateJob(Strict):
    """The body of a create."""

    model: StrictStr
    training_file: StrictStr
    validation_file: StrictStr | None = None
    suffix: StrictStr | None = None
    nickname: StrictStr | None = Field(None, description="kluster's word for suffix")
    seed: Annotated[int | None, PlainValidator(_number(-MAX_WHOLE, whole=True))] = None
    metadata: Annotated[dict[str, str] | None, PlainValidator(_metadata)] = None
    method: MethodIn | None = None
    hyperparameters: HyperparametersIn | None = Field(None, description="as method.supervised.hyperparameters")
    integrations: list[dict[str, Any]] | None = None


def wanted_job(data: CreateJob) -> WantedJob:
    """What the request asks for; raises ApiError for what cannot be honoured."""
    _refuse_unsupported(data)
    return WantedJob(
        model=data.model,
        training_file=data.training_file,
        validation_file=data.validation_file,
        suffix=_suffix(data),
        seed=data.seed,
        metadata=data.metadata,
        hyperparameters=_hyperparameters(data),
    )


def _refuse_unsupported(data: CreateJob) -> None:
    if data.integrations:
        raise ApiError(ErrorCode.UNSUPPORTED_PARAMETER, "Integrations are not supported.", param="integrations")
    method = data.method
    if method is None:
        return
    if method.type != "supervised":
        message = f"The method {method.type} is not supported; use supervised."
        raise ApiError(ErrorCode.UNSUPPORTED_PARAMETER, message, param="method")
    for name in ("dpo", "reinforcement"):
        if getattr(method, name) is not None:
            message = f"method.{name} cannot be used with the method supervised."
            raise ApiError(ErrorCode.CONFLICTING_PARAMETERS, message, param=f"method.{name}")


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
    """Top level, nested and flat together: the same name with two values is a conflict."""
    supervised = data.method.supervised if data.method else None
    flat = supervised.model_dump(exclude={"hyperparameters"}) if supervised else {}
    nested = supervised.hyperparameters.model_dump() if supervised and supervised.hyperparameters else {}
    top = data.hyperparameters.model_dump() if data.hyperparameters else {}
    merged: dict[str, Any] = {}
    for place, values in (
        ("hyperparameters", top),
        ("method.supervised.hyperparameters", nested),
        ("method.supervised", flat),
    ):
        for name, value in values.items():
            if value is not None and merged.setdefault(name, value) != value:
                message = f"{place}.{name} differs from the same hyperparameter given elsewhere."
                raise ApiError(ErrorCode.CONFLICTING_PARAMETERS, message, param=f"{place}.{name}")
    _refuse_both(merged, "learning_rate", "learning_rate_multiplier")
    _refuse_both(merged, "warmup_ratio", "warmup_steps")
    if merged.get("lora") is False:
        message = "Full fine-tuning is not supported: no engine serves its models yet. Leave lora out, or true."
        raise ApiError(ErrorCode.UNSUPPORTED_PARAMETER, message, param="hyperparameters.lora")
    return Hyperparameters(**merged)


def _refuse_both(values: Mapping[str, Any], first: str, second: str) -> None:
    if first in values and values.get(second, "auto") != "auto":
        message = f"{first} and {second} exclude each other."
        raise ApiError(ErrorCode.CONFLICTING_PARAMETERS, message, param=f"hyperparameters.{first}")
