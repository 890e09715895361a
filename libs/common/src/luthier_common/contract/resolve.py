"""What `auto` becomes: a job's spec, its number of examples and the base's context length give the run's numbers. Pure.

The scheduler pins them at the first placement; the API shows them beforehand to who asks.
"""

from luthier_common.contract.spec import Hyperparameters, JobSpec, ResolvedHyperparameters

TARGET_EPOCHS = 3
MIN_SEEN_EXAMPLES = 100
MAX_SEEN_EXAMPLES = 25_000
MAX_AUTO_EPOCHS = 25
MAX_BATCH_SIZE = 256
LORA_RATE = 2e-4
FULL_RATE = 1e-5
WARMUP_RATIO = 0.03


def resolve(spec: JobSpec, num_examples: int, context_length: int) -> ResolvedHyperparameters:
    """The numbers that every attempt of the job uses. `context_length` is the base's."""
    asked = spec.hyperparameters
    n_epochs = auto_epochs(num_examples) if asked.n_epochs == "auto" else asked.n_epochs
    batch_size = auto_batch_size(num_examples) if asked.batch_size == "auto" else asked.batch_size
    total_steps = n_epochs * -(-num_examples // batch_size)
    base_rate = LORA_RATE if asked.lora else FULL_RATE
    multiplier = 1.0 if asked.learning_rate_multiplier == "auto" else asked.learning_rate_multiplier
    rate = base_rate * multiplier
    if asked.learning_rate is not None:
        rate, multiplier = asked.learning_rate, asked.learning_rate / base_rate
    warmup_ratio = _warmup_ratio(asked)
    warmup_steps = min(asked.warmup_steps or 0, total_steps)
    return ResolvedHyperparameters(
        n_epochs=n_epochs,
        batch_size=batch_size,
        learning_rate=rate,
        learning_rate_multiplier=multiplier,
        base_learning_rate=base_rate,
        warmup_steps=warmup_steps if warmup_ratio is None else int(warmup_ratio * total_steps),
        warmup_ratio=warmup_ratio,
        weight_decay=asked.weight_decay,
        max_grad_norm=asked.max_grad_norm,
        lora=asked.lora,
        lora_r=asked.lora_r,
        lora_alpha=2 * asked.lora_r if asked.lora_alpha is None else asked.lora_alpha,
        lora_dropout=asked.lora_dropout,
        context_length=asked.longest_row(context_length),
        packing=asked.packing,
        on_overlength=asked.on_overlength,
        total_steps=total_steps,
        seed=spec.seed,
    )


def auto_epochs(num_examples: int) -> int:
    """Three passes, more for few examples and fewer for many."""
    seen = TARGET_EPOCHS * num_examples
    if seen < MIN_SEEN_EXAMPLES:
        return min(MAX_AUTO_EPOCHS, MIN_SEEN_EXAMPLES // max(1, num_examples))
    if seen > MAX_SEEN_EXAMPLES:
        return max(1, MAX_SEEN_EXAMPLES // num_examples)
    return TARGET_EPOCHS


def auto_batch_size(num_examples: int) -> int:
    """About 0.2 % of the examples."""
    return max(1, min(MAX_BATCH_SIZE, num_examples // 500))


def _warmup_ratio(asked: Hyperparameters) -> float | None:
    """None where steps were asked for."""
    if asked.warmup_steps is not None:
        return None
    return WARMUP_RATIO if asked.warmup_ratio is None else asked.warmup_ratio
