"""Methods and integrations of a create: their whole shapes are checked, also of those that no trainer has yet. Pure."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictStr

from luthier_api.dialects.openai.fields import (
    BATCH_SIZE,
    MULTIPLIER,
    N_EPOCHS,
    AutoFloat,
    AutoInt,
    BatchSize,
    Dropout,
    Epochs,
    Multiplier,
    Share,
    Strict,
    number,
)

MethodName = Literal["supervised", "dpo", "reinforcement"]
MAX_INTEGRATIONS = 5
Text = Annotated[StrictStr, Field(min_length=1, max_length=512)]


class SharedIn(Strict):
    """Hyperparameters of every method; null means: not given."""

    n_epochs: Epochs = Field(None, description=N_EPOCHS)
    batch_size: BatchSize = Field(None, description=BATCH_SIZE)
    learning_rate_multiplier: Multiplier = Field(None, description=MULTIPLIER)


class HyperparametersIn(SharedIn):
    """Hyperparameters of a supervised job; null means: not given."""

    learning_rate: Annotated[float | None, number(0, above=True)] = Field(
        None, description="Extension: the absolute peak rate, above 0. Excludes learning_rate_multiplier."
    )
    warmup_ratio: Share = Field(
        None, description="Extension: the share of the steps that warm up, 0 to 1; 0.03 if not given."
    )
    warmup_steps: Annotated[int | None, number(0, whole=True)] = Field(
        None, description="Extension: steps that warm up. Excludes warmup_ratio."
    )
    weight_decay: Annotated[float | None, number(0)] = Field(
        None, description="Extension: AdamW weight decay; 0 if not given."
    )
    max_grad_norm: Annotated[float | None, number(0)] = Field(
        None, description="Extension: the gradient clipping norm; 1 if not given, 0 switches clipping off."
    )
    lora: StrictBool | None = Field(
        None, description="Extension: true trains a LoRA adapter, as when not given; false is refused for now."
    )
    lora_r: Annotated[int | None, number(1, 128, whole=True)] = Field(
        None, description="Extension: the LoRA rank, 1 to 128; 16 if not given."
    )
    lora_alpha: Annotated[int | None, number(1, whole=True)] = Field(
        None, description="Extension: the LoRA scale; twice the rank if not given."
    )
    lora_dropout: Dropout = Field(None, description="Extension: LoRA dropout, from 0 to below 1; 0 if not given.")
    context_length: Annotated[int | None, number(2, whole=True)] = Field(
        None, description="Extension: the longest row in tokens; the smaller of 8192 and the base's if not given."
    )
    packing: StrictBool | None = Field(
        None, description="Extension: fill each row of a batch with several examples; false if not given."
    )
    on_overlength: Literal["error", "truncate", "drop"] | None = Field(
        None,
        description="Extension: what happens to rows longer than context_length. `error`, as when not given: the job "
        "fails at validation and names the lines; `truncate`: their ends are cut; `drop`: they are left out.",
        examples=["truncate"],
    )


class SupervisedIn(HyperparametersIn):
    """`method.supervised`: nested hyperparameters as OpenAI has them, or flat as kluster sends them."""

    hyperparameters: HyperparametersIn | None = None


class DpoHyperparametersIn(SharedIn):
    """Hyperparameters of a preference job."""

    beta: Annotated[AutoFloat, number(0, 2, auto=True, above=True)] = Field(
        None, description="How strongly the base holds the model back, above 0, at most 2."
    )


class DpoIn(Strict):
    """`method.dpo`."""

    hyperparameters: DpoHyperparametersIn | None = None


class ReinforcementHyperparametersIn(SharedIn):
    """Hyperparameters of a reinforcement job."""

    compute_multiplier: Annotated[AutoFloat, number(0.00001, 10, auto=True, above=True)] = Field(
        None, description="How much is explored, above 0.00001, at most 10."
    )
    eval_interval: Annotated[AutoInt, number(1, whole=True, auto=True)] = Field(
        None, description="Steps between two evaluations."
    )
    eval_samples: Annotated[AutoInt, number(1, whole=True, auto=True)] = Field(
        None, description="Samples for each row of an evaluation."
    )
    reasoning_effort: Literal["default", "low", "medium", "high"] | None = None


class ReinforcementIn(Strict):
    """`method.reinforcement`."""

    grader: dict[str, Any] = Field(description="A grader, as `/fine_tuning/alpha/graders/validate` takes it.")
    hyperparameters: ReinforcementHyperparametersIn | None = None


class MethodIn(Strict):
    """How to train. Its payload stands under the key of the same name."""

    type: MethodName = Field(description="`dpo` and `reinforcement` are checked, then refused for now.")
    supervised: SupervisedIn | None = None
    dpo: DpoIn | None = None
    reinforcement: ReinforcementIn | None = None


class WandbIn(Strict):
    """Where Weights & Biases would show the run."""

    project: Text
    name: Text | None = None
    entity: Text | None = None
    tags: list[Text] | None = Field(None, max_length=50)


class HubIn(Strict):
    """Where the model would be pushed to. The token is never given back."""

    output_repo_name: Text
    api_token: Text


class IntegrationIn(Strict):
    """A service that would be told of the run. Checked, then refused: none can be reached yet."""

    type: Literal["wandb", "hf"]
    wandb: WandbIn | None = None
    hf: HubIn | None = None


Integrations = Annotated[list[IntegrationIn], Field(max_length=MAX_INTEGRATIONS)]
Place = tuple[str, Mapping[str, Any]]
"""Where hyperparameters stand in the body, and those that are given there."""


def places_of(method: MethodIn | None, top: HyperparametersIn | None) -> Iterator[Place]:
    """Every place that hyperparameters of the job's method are given at, the deprecated top level first."""
    yield "hyperparameters", _given(top)
    if method is None:
        return
    chosen: SupervisedIn | DpoIn | ReinforcementIn | None = getattr(method, method.type)
    if chosen is None:
        return
    yield f"method.{method.type}.hyperparameters", _given(chosen.hyperparameters)
    if isinstance(chosen, SupervisedIn):
        yield "method.supervised", _given(chosen, exclude={"hyperparameters"})


def names_of(method: MethodName) -> frozenset[str]:
    """The hyperparameters that a method has."""
    shapes: dict[MethodName, type[SharedIn]] = {
        "supervised": HyperparametersIn,
        "dpo": DpoHyperparametersIn,
        "reinforcement": ReinforcementHyperparametersIn,
    }
    return frozenset(shapes[method].model_fields)


def _given(shape: Strict | None, exclude: set[str] | None = None) -> dict[str, Any]:
    return shape.model_dump(exclude_none=True, exclude=exclude) if shape else {}
