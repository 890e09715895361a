"""A base is tried with one chat: what it would be served must be what it is trained on, and a reply must end."""

import pytest
from tests.builders.bases import TINY_TEMPLATE, VOCABULARY, chat_row, make_tiny_base
from tokenizers import Tokenizer

from luthier_registry.errors import BaseImportError
from luthier_registry.trial import choose_text
from luthier_text import TextBundle, TextConfig, TrainRow

ROW = chat_row("Where is my parcel?", "It arrives on Thursday.")
PROMPT = "{{ '<|im_start|>assistant\n' }}"
THINKING_PROMPT = "{{ '<|im_start|>assistant\n<think>\n' }}"
FORGETS_THOUGHTS = TINY_TEMPLATE.replace(PROMPT, THINKING_PROMPT)
"""The shape of QwQ and of the distilled DeepSeek-R1."""
ALWAYS_THINKS = FORGETS_THOUGHTS.replace(
    "message['role'] + '\n' + message['content']",
    "message['role'] + ('\n<think>\n\n</think>\n\n' if message['role'] == 'assistant' else '\n') + message['content']",
)
"""The shape of Qwen3-Thinking."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return (make_tiny_base(tmp_path_factory.mktemp("base")) / "tokenizer.json").read_bytes()


def choose(tokenizer: bytes, template: str, *ends: str) -> tuple[TextConfig, TextBundle]:
    named = TextConfig(eos_token="<|endoftext|>", generation_eos=list(ends), context_length=256)
    chosen = choose_text(tokenizer, template, named, VOCABULARY)
    return chosen, TextBundle(tokenizer, template.encode(), chosen)


def test_a_token_that_closes_replies_becomes_one_that_ends_them(tokenizer: bytes) -> None:
    chosen, text = choose(tokenizer, TINY_TEMPLATE, "<|endoftext|>")
    assert chosen.generation_eos == ["<|endoftext|>", "<|im_end|>"]
    row = text.train_row(ROW)
    assert isinstance(row, TrainRow)
    assert row.warnings == ()
    closing = [label for label in row.labels if label >= 0][-1]
    assert closing == Tokenizer.from_str(tokenizer.decode()).token_to_id("<|im_end|>")
    assert closing in text.eos_ids, "an engine stops at what the model has learnt to say last"


def test_a_config_that_names_the_closing_token_is_left_as_it_is(tokenizer: bytes) -> None:
    assert choose(tokenizer, TINY_TEMPLATE, "<|im_end|>")[0].generation_eos == ["<|im_end|>"]


@pytest.mark.parametrize("closing", ["", "\n", "###", " END"])
def test_a_template_whose_replies_end_in_no_token_is_refused(tokenizer: bytes, closing: str) -> None:
    template = TINY_TEMPLATE.replace("<|im_end|>", closing)
    with pytest.raises(BaseImportError, match="closes a reply with no token") as caught:
        choose(tokenizer, template)
    assert caught.value.code == "base_untrainable"


def test_a_template_that_asks_behind_other_text_than_it_prints_is_refused_with_what_to_do(tokenizer: bytes) -> None:
    with pytest.raises(BaseImportError, match=r"chat_template\.jinja of its own that prints both alike") as caught:
        choose(tokenizer, FORGETS_THOUGHTS, "<|im_end|>")
    assert caught.value.code == "base_untrainable"
    assert r"ends a prompt in" in str(caught.value)
    assert r"<|im_start|>assistant\n<think>\n'" in str(caught.value)


def test_a_model_that_always_thinks_is_taken(tokenizer: bytes) -> None:
    _, text = choose(tokenizer, ALWAYS_THINKS, "<|im_end|>")
    row, prompt = text.train_row(ROW), text.prompt_ids(ROW["messages"][:1])
    assert isinstance(row, TrainRow)
    assert row.input_ids[: len(prompt)] == prompt
    assert text.decode([label for label in row.labels if label >= 0]) == "\n</think>\n\nIt arrives on Thursday."
