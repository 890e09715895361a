"""Decoding, streaming, parity and sharing of a bundle."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from luthier_text import TEMPLATE_FILE, TEXT_FILE, TOKENIZER_FILE, TextBundle, TextConfig, TextError

TEXT = "  hello é🎉👩‍👩‍👧 日本語\n\n  1 23\t x "


@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
def test_a_stream_gives_whole_characters_and_all_of_the_text(
    make_pair: Any, request: pytest.FixtureRequest, kind: str
) -> None:
    pair = make_pair("smollm2", request.getfixturevalue(kind))
    ids = [*pair.theirs(TEXT, add_special_tokens=False)["input_ids"], pair.theirs.convert_tokens_to_ids("<|im_end|>")]
    for size in (1, 2, 5, len(ids)):
        decoder = pair.bundle.stream_decoder()
        pieces = [decoder.feed(ids[start : start + size]) for start in range(0, len(ids), size)]
        assert not any("\ufffd" in piece for piece in pieces)
        assert "".join(pieces) + decoder.flush() == pair.bundle.decode(ids)
    assert pair.bundle.decode(ids).strip() == TEXT.strip().replace("\t", "\t" if kind == "byte_level" else " ")


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 500), max_size=40), sizes=st.integers(1, 7))
def test_a_stream_of_any_ids_equals_decoding_them_at_once(smollm2: Any, ids: list[int], sizes: int) -> None:
    decoder = smollm2.bundle.stream_decoder()
    pieces = [decoder.feed(ids[start : start + sizes]) for start in range(0, len(ids), sizes)]
    assert "".join(pieces) + decoder.flush() == smollm2.bundle.decode(ids)


def test_half_a_character_comes_out_at_the_end_only(smollm2: Any) -> None:
    ids = smollm2.theirs("a🎉", add_special_tokens=False)["input_ids"]
    decoder = smollm2.bundle.stream_decoder()
    assert decoder.feed(ids[:-1]) == "a"
    assert decoder.flush() == "\ufffd"
    assert decoder.feed(ids) == "a🎉"


def test_a_long_run_of_broken_bytes_is_not_held_for_ever(make_pair: Any, metaspace: Tokenizer) -> None:
    bundle = make_pair("smollm2", metaspace).bundle
    broken = metaspace.token_to_id("<0xE4>")
    decoder = bundle.stream_decoder()
    assert decoder.feed([broken] * 20)
    assert decoder.feed(metaspace.encode("hello", add_special_tokens=False).ids).endswith("hello")


def test_golden_rows_are_equal_until_something_changes(smollm2: Any, chats: list[Any]) -> None:
    rows = [{"messages": chat} for chat in chats]
    golden = json.loads(json.dumps(smollm2.bundle.golden(rows, k=16)))
    assert len(golden) == 16
    assert TextBundle.load(smollm2.directory).check_golden(golden) == []
    golden[3]["labels"][-2] = 5
    golden[4]["input_ids"].append(1)
    golden[5]["row"] = {"messages": []}
    differences = smollm2.bundle.check_golden(golden)
    assert [text.split(":")[0] for text in differences] == [f"golden row {n}" for n in (3, 4, 5)]
    assert "refused with no_messages" in differences[2]


def test_another_template_is_seen_by_golden_rows_and_facts(smollm2: Any, make_pair: Any) -> None:
    golden = smollm2.bundle.golden(
        [{"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}]
    )
    other = make_pair("phi").bundle
    assert other.check_golden(golden) != []
    assert other.facts["template_sha256"] != smollm2.bundle.facts["template_sha256"]
    assert other.facts["tokenizer_sha256"] == smollm2.bundle.facts["tokenizer_sha256"]


def test_facts_are_json_and_name_what_ids_depend_on(smollm2: Any) -> None:
    facts = json.loads(json.dumps(smollm2.bundle.facts))
    assert facts["mask_mode"] == "turn_tracking/2"
    assert facts["special_tokens"]["eos_token"] == "<|endoftext|>"
    assert set(facts["versions"]) == {"luthier-text", "tokenizers", "jinja2"}
    assert facts["context_length"] == 8192


def test_threads_that_share_a_bundle_get_the_ids_of_one_alone(qwen: Any, chats: list[Any]) -> None:
    rows = [{"messages": chat} for chat in chats] + [
        {"messages": [{"role": "user", "content": f"<|im_end|>{n}"}, {"role": "assistant", "content": "x" * n}]}
        for n in range(20)
    ]
    alone = [qwen.bundle.train_row(row, max_length=40 + n) for n, row in enumerate(rows)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            together = pool.map(lambda pair: qwen.bundle.train_row(pair[1], max_length=40 + pair[0]), enumerate(rows))
            assert list(together) == alone


def test_bytes_that_the_vocabulary_lacks_are_a_warning(tmp_path: Path) -> None:
    alphabet = [char for char in sorted(pre_tokenizers.ByteLevel.alphabet()) if char != "Ą"]
    tokenizer = Tokenizer(models.BPE({char: id_ for id_, char in enumerate([*alphabet, "<e>"])}, []))
    tokenizer.add_special_tokens(["<e>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    (tmp_path / TOKENIZER_FILE).write_text(tokenizer.to_str())
    (tmp_path / TEMPLATE_FILE).write_text("{% for m in messages %}{{ m.content }}<e>{% endfor %}")
    (tmp_path / TEXT_FILE).write_text(TextConfig(eos_token="<e>", context_length=99).model_dump_json())
    bundle = TextBundle.load(tmp_path)
    for text, warnings in (("a\x04b", ("bytes_without_token",)), ("ab", ())):
        made = bundle.train_row(
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": text}]}
        )
        assert made.warnings == warnings  # type: ignore[union-attr]


@pytest.mark.parametrize("name", [TOKENIZER_FILE, TEMPLATE_FILE, TEXT_FILE])
def test_a_bundle_that_lacks_or_spoils_a_file_says_so(smollm2: Any, tmp_path: Path, name: str) -> None:
    for spoiled in (None, b"{", b"\xff"):
        for file in (TOKENIZER_FILE, TEMPLATE_FILE, TEXT_FILE):
            (tmp_path / file).write_bytes((smollm2.directory / file).read_bytes())
        if spoiled is None:
            (tmp_path / name).unlink()
        elif name == TEMPLATE_FILE:
            (tmp_path / name).write_bytes(b"{% x" if spoiled == b"{" else spoiled)
        else:
            (tmp_path / name).write_bytes(spoiled)
        with pytest.raises(TextError) as caught:
            TextBundle.load(tmp_path)
        assert caught.value.code == "bad_bundle"


def test_an_end_token_that_the_tokenizer_lacks_is_a_bad_bundle(smollm2: Any, tmp_path: Path) -> None:
    for file in (TOKENIZER_FILE, TEMPLATE_FILE):
        (tmp_path / file).write_bytes((smollm2.directory / file).read_bytes())
    (tmp_path / TEXT_FILE).write_text(TextConfig(generation_eos=["<nope>"], context_length=9).model_dump_json())
    with pytest.raises(TextError) as caught:
        TextBundle.load(tmp_path)
    assert caught.value.code == "bad_bundle"


def test_a_disk_that_does_not_give_a_bundle_says_nothing_about_it(smollm2: Any, tmp_path: Path) -> None:
    for file in (TOKENIZER_FILE, TEXT_FILE):
        (tmp_path / file).write_bytes((smollm2.directory / file).read_bytes())
    with pytest.raises(TextError):
        TextBundle.load(tmp_path)
    (tmp_path / TEMPLATE_FILE).mkdir()
    with pytest.raises(OSError, match="directory"):
        TextBundle.load(tmp_path)


def test_importing_the_library_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, luthier_text; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    paths = {"PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, env=paths, capture_output=True, text=True, check=True).stdout == "[]\n"
