"""One chat, rendered and masked as rooms will do it: a base that cannot be trained on never enters the catalogue."""

from pydantic import JsonValue

from luthier_registry.errors import BaseImportError
from luthier_text import IGNORED_LABEL, TEMPLATE_FILE, Refused, TextBundle, TextConfig, TextError, TrainRow

PINNED_DATE = "2025-01-01"
"""The date for templates that cannot do without one: ids must not change from day to day."""
ANSWER = "It arrives on Thursday."
CHAT = [{"role": "user", "content": "Where is my parcel?"}, {"role": "assistant", "content": ANSWER}]
_SHOWN_CHARACTERS = 40
_REMEDY = f"give the model a {TEMPLATE_FILE} of its own"


def choose_text(tokenizer: bytes, template: str, text: TextConfig, vocab_size: int) -> TextConfig:
    """`text` as it can be trained and served with; a date is pinned only for a template that fails without one."""
    try:
        return _close_replies(tokenizer, template, text, vocab_size)
    except BaseImportError:
        if "strftime_now" not in template:
            raise
    pinned: dict[str, JsonValue] = {"strftime_now": PINNED_DATE}
    return _close_replies(tokenizer, template, text.model_copy(update={"variables": pinned}), vocab_size)


def _close_replies(tokenizer: bytes, template: str, text: TextConfig, vocab_size: int) -> TextConfig:
    """`text` in which the token that closes a reply ends a generation, whatever the model's config says of it."""
    try:
        bundle = TextBundle(tokenizer, template.encode(), text)
    except TextError as error:
        raise _unusable(error) from error
    row = _try_chat(bundle, vocab_size)
    if "turn_without_end_token" not in row.warnings:
        return text
    last = next(label for label in reversed(row.labels) if label != IGNORED_LABEL)
    end = bundle.control_token(last)
    if end is None or end in text.generation_eos:
        raise BaseImportError(
            "base_untrainable",
            "the template closes a reply with no token, so that a tuned model would not learn where to stop: "
            f"{_REMEDY} that prints the end-of-text token behind each reply",
        )
    ends = [*text.generation_eos, end]
    return _close_replies(tokenizer, template, text.model_copy(update={"generation_eos": ends}), vocab_size)


def _try_chat(text: TextBundle, vocab_size: int) -> TrainRow:
    """Raise `BaseImportError` where a question and its answer would not come out right."""
    try:
        prompt = text.prompt_ids(CHAT[:1])
    except TextError as error:
        raise _unusable(error) from error
    row = text.train_row({"messages": CHAT})
    if isinstance(row, Refused):
        raise BaseImportError("base_untrainable", _why_refused(text, row))
    learnt = text.decode([label for label in row.labels if label != IGNORED_LABEL])
    if ANSWER not in learnt:
        raise BaseImportError("base_untrainable", "the template does not print the answer of the assistant as it is")
    if max([*prompt, *row.input_ids, *text.eos_ids]) >= vocab_size:
        raise BaseImportError("base_bad_tokenizer", "the tokenizer has ids that the model has no embedding for")
    return row


def _why_refused(text: TextBundle, row: Refused) -> str:
    if row.code != "prompt_differs":
        return f"the template cannot be trained on: {row.code}: {row.message}"
    shown = text.render(CHAT[:1], add_generation_prompt=True)[-_SHOWN_CHARACTERS:]
    return (
        f"the template ends a prompt in {shown!r}, but prints the reply to it behind another text, so that a model "
        f"would not be trained as it is served: {_REMEDY} that prints both alike"
    )


def _unusable(error: TextError) -> BaseImportError:
    """What is said of a template or tokenizer with which no chat can be rendered."""
    return BaseImportError("base_untrainable", f"no chat can be rendered: {error.code}: {error.message}")
