"""One chat, rendered and masked as rooms will do it: a base that cannot be trained on never enters the catalogue."""

from luthier_registry.errors import BaseImportError
from luthier_text import IGNORED_LABEL, Refused, TextBundle, TextError

ANSWER = "It arrives on Thursday."
CHAT = [{"role": "user", "content": "Where is my parcel?"}, {"role": "assistant", "content": ANSWER}]


def try_text(text: TextBundle, vocab_size: int) -> None:
    """Raise `BaseImportError` where a question and its answer would not come out right."""
    try:
        prompt = text.prompt_ids(CHAT[:1])
    except TextError as error:
        raise unusable(error) from error
    row = text.train_row({"messages": CHAT})
    if isinstance(row, Refused):
        raise BaseImportError("base_untrainable", f"the template cannot be trained on: {row.code}: {row.message}")
    learnt = text.decode([label for label in row.labels if label != IGNORED_LABEL])
    if ANSWER not in learnt:
        raise BaseImportError("base_untrainable", "the template does not print the answer of the assistant as it is")
    if max([*prompt, *row.input_ids, *text.eos_ids]) >= vocab_size:
        raise BaseImportError("base_bad_tokenizer", "the tokenizer has ids that the model has no embedding for")


def unusable(error: TextError) -> BaseImportError:
    """What is said of a template or tokenizer with which no chat can be rendered."""
    return BaseImportError("base_untrainable", f"no chat can be rendered: {error.code}: {error.message}")
