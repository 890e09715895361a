"""What the registry reads from the environment."""

from pathlib import Path

from pydantic import Field

from luthier_common.kit.settings import RoomSettings


class RegistrySettings(RoomSettings):
    base_sources: dict[str, Path] = Field(
        default_factory=dict,
        description="JSON object: name of a base model to a Hugging Face directory, GGUF file or bundle",
    )
    serving_wait_s: float = Field(
        60.0, description="a finished model is not tried when no engine has listed its base for so long"
    )
    claim_ttl_s: float = Field(30.0, description="another registry takes over work that was not renewed for so long")
    sweep_s: float = Field(60.0, description="how often objects that nobody refers to are looked for")
