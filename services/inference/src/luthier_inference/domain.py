"""What a generation is asked for and what it gives, and the text rules that need no model. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from luthier_common.kit.errors import LuthierError, TransientError

MAX_STOPS = 4


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"


class UnknownAdapterError(LuthierError):
    """The request names an adapter that is not loaded."""

    code = "model_not_found"


class BadAdapterError(LuthierError):
    """The adapter's files cannot be served with this base."""

    code = "adapter_unusable"


class FilesMissingError(LuthierError):
    """The object store does not have the files of a model any more."""

    code = "model_files_missing"


class FilesUnreadableError(TransientError):
    """This machine cannot read or keep the files of a model now; the model itself may be fine."""

    code = "engine_failed"


class BadBaseError(LuthierError):
    """The base bundle cannot be loaded."""

    code = "base_unusable"


class ContextLengthError(LuthierError):
    """The prompt alone fills the context of the base model."""

    code = "context_length_exceeded"
    param = "messages"


class EngineBusyError(TransientError):
    """Too many requests wait, or too many adapters are in use."""

    code = "engine_overloaded"


class BrokenWeightsError(LuthierError):
    """The model computes values that are not numbers here: another engine may have a better device or dtype."""

    code = "broken_weights"


class EngineFailedError(LuthierError):
    """The engine stopped or could not compute; the request itself may be fine."""

    code = "engine_failed"


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen and when to end. `temperature` 0 takes the likeliest token."""

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Generation:
    """One answer to make: the prompt's ids, the adapter (None: the base itself), the sampling, and who asks."""

    prompt_ids: tuple[int, ...]
    adapter: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    project: str | None = None


@dataclass(frozen=True)
class Delta:
    """The next piece of an answer. Only the last one has a finish reason; `num_tokens` counts ids made since the one
    before, also those whose text is still held back or cut off."""

    text: str
    num_tokens: int
    finish_reason: FinishReason | None = None


def token_budget(num_prompt: int, max_tokens: int | None, context_length: int) -> int:
    """How many tokens may be made; raises `ContextLengthError` when the prompt leaves no room."""
    room = context_length - num_prompt
    if room < 1:
        raise ContextLengthError(
            f"This model's maximum context length is {context_length} tokens, the messages have {num_prompt}."
        )
    return room if max_tokens is None else min(room, max_tokens)


class StopFilter:
    """Lets text through until a stop sequence begins; text that may still become one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.is_stopped = False

    def feed(self, text: str) -> str:
        """The text that can be shown now. Once `is_stopped`, nothing more is shown."""
        if self.is_stopped:
            return ""
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.is_stopped = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def flush(self) -> str:
        """What was held back and did not become a stop sequence."""
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
