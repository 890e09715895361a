"""What fails for everybody, counted until it is sure that an engine can never compute again in its process."""

import torch

MOST_FAILURES = 3
"""So many times running, nothing could be computed for anybody."""


class Failures:
    """Steps of all rows, and prompts, that failed one after another."""

    def __init__(self) -> None:
        self._num_steps = 0
        self._prompts: set[tuple[int, ...]] = set()
        self.broken: str | None = None
        """Why the engine can never compute again in this process."""

    def add_step(self, error: Exception) -> None:
        self._num_steps += 1
        self._judge(error, self._num_steps)

    def add_prompt(self, ids: tuple[int, ...], error: Exception) -> None:
        """A prompt that fails counts once, however often it comes again: the fault may be its own."""
        self._prompts.add(ids)
        self._judge(error, len(self._prompts))

    def end_prompts(self) -> None:
        """A prompt was read."""
        self._prompts.clear()

    def end(self) -> None:
        """A step was computed, and whatever that takes works."""
        self._num_steps = 0
        self._prompts.clear()

    def _judge(self, error: Exception, num_failures: int) -> None:
        if isinstance(error, torch.AcceleratorError) or num_failures >= MOST_FAILURES:
            self.broken = f"the engine cannot compute any more: {type(error).__name__}"
