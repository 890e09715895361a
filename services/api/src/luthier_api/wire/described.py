"""What MKA1's library needs to hear of a model: it refuses a whole answer that lacks one of these. Unknown is null."""

from typing import Literal, TypedDict


class Lifecycle(TypedDict):
    status: Literal["active"]
    deprecated_at: None
    retires_at: None
    successor: None


class Capabilities(TypedDict):
    supports_temperature: bool
    supports_top_p: bool
    supports_reasoning: bool
    supports_reasoning_effort: bool
    supports_structured_outputs: bool


class Described(TypedDict, total=False):
    """There on the MKA1 dialect only."""

    model_type: Literal["llm"]
    input_modalities: list[str]
    output_modalities: list[str]
    context_window: int | None
    max_image_resolution: None
    min_image_resolution: None
    embedding_dimension_range: None
    parameter_count: None
    active_parameter_count: None
    release_date: None
    serving_locations: None
    developer: None
    base_model: str | None
    weights: None
    license: None
    languages: None
    tts: None
    limitations: None
    lifecycle: Lifecycle
    capabilities: Capabilities


def describe(base: str | None, context_window: int | None) -> Described:
    """A model that reads and writes text."""
    return {
        "model_type": "llm",
        "input_modalities": ["text"],
        "output_modalities": ["text"],
        "context_window": context_window,
        "max_image_resolution": None,
        "min_image_resolution": None,
        "embedding_dimension_range": None,
        "parameter_count": None,
        "active_parameter_count": None,
        "release_date": None,
        "serving_locations": None,
        "developer": None,
        "base_model": base,
        "weights": None,
        "license": None,
        "languages": None,
        "tts": None,
        "limitations": None,
        "lifecycle": {"status": "active", "deprecated_at": None, "retires_at": None, "successor": None},
        "capabilities": {
            "supports_temperature": True,
            "supports_top_p": True,
            "supports_reasoning": False,
            "supports_reasoning_effort": False,
            "supports_structured_outputs": False,
        },
    }
