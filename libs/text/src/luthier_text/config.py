"""The file `text.json` of a base bundle: what tokenizer and template need beside their own files."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"
TEXT_FILE = "text.json"


class TextConfig(BaseModel):
    """Special tokens, ends of generation, length and pinned template variables of a base bundle.

    `variables` reach the template by name. `variables["strftime_now"]`, an ISO date or time, pins the date that the
    template function `strftime_now(format)` prints; without it the function is undefined, so that templates fall
    back to the date that they carry themselves and ids never change from day to day.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    unk_token: str | None = None
    generation_eos: list[str] = Field(default_factory=list)
    context_length: int = Field(gt=0)
    variables: dict[str, JsonValue] = Field(default_factory=dict)

    @field_validator("variables")
    @classmethod
    def _check_pinned_date(cls, variables: dict[str, JsonValue]) -> dict[str, JsonValue]:
        moment = variables.get("strftime_now")
        if moment is not None:
            datetime.fromisoformat(str(moment))
        return variables

    @property
    def special_tokens(self) -> dict[str, str]:
        """The special tokens that are set, under the names that templates use."""
        named = {
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "unk_token": self.unk_token,
            "pad_token": self.pad_token,
        }
        return {name: token for name, token in named.items() if token is not None}
