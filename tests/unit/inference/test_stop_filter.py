"""Stop sequences in a stream of text, however it is cut."""

import itertools

import pytest

from luthier_inference.adapter_config import parse_adapter_config
from luthier_inference.domain import BadAdapterError, ContextLengthError, StopFilter, token_budget


def run(pieces: list[str], stops: list[str]) -> str:
    filter_ = StopFilter(stops)
    return "".join(map(filter_.feed, pieces)) + filter_.flush()


def cuts(text: str) -> list[list[str]]:
    found = []
    for marks in itertools.product((False, True), repeat=len(text) - 1):
        pieces, start = [], 0
        for at, mark in enumerate(marks, start=1):
            if mark:
                pieces.append(text[start:at])
                start = at
        found.append([*pieces, text[start:]])
    return found


@pytest.mark.parametrize(
    ("text", "stops", "shown"),
    [
        ("abcSTOPd", ["STOP"], "abc"),
        ("SSTOPab", ["STOP"], "S"),
        ("aababac", ["abac"], "aab"),
        ("abc STO", ["STOP"], "abc STO"),
        ("x\n\nyz", ["\n\n", "z"], "x"),
        ("abcdef", [], "abcdef"),
    ],
)
def test_every_cut_of_the_text_shows_the_same(text: str, stops: list[str], shown: str) -> None:
    assert {run(pieces, stops) for pieces in cuts(text)} == {shown}


def test_text_that_cannot_become_a_stop_is_shown_at_once() -> None:
    filter_ = StopFilter(["STOP"])
    assert filter_.feed("abS") == "ab"
    assert filter_.feed("Tx") == "STx"


def test_budget_is_what_the_context_leaves() -> None:
    assert token_budget(10, None, 32) == 22
    assert token_budget(10, 5, 32) == 5
    with pytest.raises(ContextLengthError):
        token_budget(32, 5, 32)


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"[]",
        b'{"peft_type": "LORA", "r": 0, "lora_alpha": 1}',
        b'{"peft_type": "LORA", "r": true, "lora_alpha": 1}',
        b'{"peft_type": "LORA", "r": 8}',
        b'{"peft_type": "IA3", "r": 8, "lora_alpha": 1}',
        b'{"r": 8, "lora_alpha": 1, "bias": "all"}',
        b'{"r": 8, "lora_alpha": 1, "modules_to_save": ["lm_head"]}',
        b'{"r": 8, "lora_alpha": 1, "surprise": 1}',
    ],
)
def test_adapter_settings_that_cannot_be_served_are_refused(data: bytes) -> None:
    with pytest.raises(BadAdapterError):
        parse_adapter_config(data)


def test_scale_of_an_adapter() -> None:
    assert parse_adapter_config(b'{"r": 4, "lora_alpha": 8}').scale == 2
    assert parse_adapter_config(b'{"r": 4, "lora_alpha": 8, "use_rslora": true}').scale == 4
