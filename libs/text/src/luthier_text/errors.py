"""Why a row or prompt cannot become token ids; the codes are stable, the messages hold no text of the row.

`bad_messages`, `no_messages`, `unknown_role`, `content_part_unsupported`, `bad_weight`, `bad_tools`,
`legacy_functions`, `lone_surrogate`, `template_refused`, `tools_not_rendered`, `tool_calls_not_rendered`,
`message_not_rendered`, `control_token_in_text`, `context_length_exceeded`, `turn_not_tracked`, `turn_mixes_roles`,
`prompt_differs`, `nothing_to_learn`, `row_too_long`, `row_dropped` and, when a bundle is loaded, `bad_bundle`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Refused:
    """A row that cannot be trained on, and why."""

    code: str
    message: str


class TextError(ValueError):
    """Messages or a bundle that cannot be used; `code` is stable."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
