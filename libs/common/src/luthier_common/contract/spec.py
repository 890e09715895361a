"""What a job asks for (the spec) and what was made of it (the resolved hyperparameters)."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Auto = Literal["auto"]
OnOverlength = Literal["error", "truncate", "drop"]
"""What happens to rows that are longer than `context_length`: the files are refused, or the rows cut, or left out."""
MAX_AUTO_CONTEXT = 8192


class Shape(BaseModel):
    """Frozen, and tolerant when read back: a newer writer may have added fields."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Hyperparameters(Shape):
    """A supervised job's hyperparameters as the user gave them; `auto` and None are resolved at the first placement."""

    n_epochs: int | Auto = Field("auto", description="passes over the training file, 1 to 50")
    batch_size: int | Auto = Field("auto", description="rows per optimiser step, 1 to 256")
    learning_rate_multiplier: float | Auto = Field("auto", description="times the base rate of the method, above 0")
    learning_rate: float | None = Field(None, description="absolute peak rate; excludes the multiplier")
    warmup_ratio: float | None = Field(None, description="share of the steps that warm up, 0 to 1")
    warmup_steps: int | None = Field(None, description="steps that warm up; excludes the ratio")
    weight_decay: float = Field(0.0, description="AdamW weight decay")
    max_grad_norm: float = Field(1.0, description="gradient clipping norm; 0 switches clipping off")
    lora: bool = Field(True, description="train a LoRA adapter; false trains all weights")
    lora_r: int = Field(16, description="LoRA rank, 1 to 128")
    lora_alpha: int | None = Field(None, description="LoRA scale; twice the rank when not given")
    lora_dropout: float = Field(0.0, description="LoRA dropout, from 0 to below 1")
    context_length: int | None = Field(
        None, description="longest row in tokens; the base's, at most 8192, if not given"
    )
    packing: bool = Field(False, description="fill each row of a batch with several examples")
    on_overlength: OnOverlength = Field("error", description="what happens to rows longer than context_length")

    def longest_row(self, base_context_length: int) -> int:
        """Tokens that a row may have at most."""
        return min(self.context_length or MAX_AUTO_CONTEXT, base_context_length)


class ResolvedHyperparameters(Shape):
    """The numbers a run really uses: pinned at the first placement, the same for every attempt."""

    n_epochs: int
    batch_size: int
    learning_rate: float
    learning_rate_multiplier: float
    base_learning_rate: float
    warmup_steps: int
    warmup_ratio: float | None = Field(None, description="what decides, unless steps were asked for")
    weight_decay: float
    max_grad_norm: float
    lora: bool
    lora_r: int
    lora_alpha: int
    lora_dropout: float
    context_length: int
    packing: bool
    on_overlength: OnOverlength = "error"
    total_steps: int = Field(description="without packing, which makes fewer: RunStarted says how many")
    seed: int


class Resources(Shape):
    """What a run occupies while it is placed."""

    num_slots: int = Field(1, ge=1, description="slots (GPUs, or CPU slots) for the run")


class JobSpec(Shape):
    """A job as its creator asked for it. Metadata and secrets are not part of it: they stay on the document."""

    model: str = Field(description="id of the base model in the catalogue")
    training_file: str
    validation_file: str | None = None
    suffix: str | None = None
    seed: int
    method: Literal["supervised"] = "supervised"
    hyperparameters: Hyperparameters = Hyperparameters()
    priority: int = 0
    resources: Resources = Resources()
    preemptible: bool = True
    max_cost: float | None = None
    max_duration_s: int | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Ids of the files that its runs read."""
        return tuple(file_id for file_id in (self.training_file, self.validation_file) if file_id is not None)
