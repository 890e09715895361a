"""A tiny GGUF, written here, becomes a complete bundle or a refusal with a code."""

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from safetensors.numpy import load_file
from tests.builders.bases import TINY_TEMPLATE
from tokenizers.pre_tokenizers import ByteLevel

from luthier_registry.base_import import main
from luthier_registry.bundle import BundleExistsError, damaged_files, read_manifest
from luthier_registry.errors import BaseImportError
from luthier_registry.gguf_import import build_tokenizer, import_gguf
from luthier_registry.gguf_read import GgufImportError, Vocabulary, unpermute

HEADS, KV_HEADS, WIDTH, INNER = 4, 2, 16, 24
ALPHABET = sorted(ByteLevel.alphabet())
TOKENS = ["<|im_start|>", "<|im_end|>", *ALPHABET, "ĠĠ", "12"]
MERGES = ["Ġ Ġ", "1 2"]
TYPES = [3, 3, *([1] * (len(TOKENS) - 2))]


def permute(weights: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp does to q and k when it writes a GGUF."""
    half = weights.shape[0] // heads // 2
    return weights.reshape(heads, 2, half, weights.shape[1]).swapaxes(1, 2).reshape(weights.shape)


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def make_weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    kv_width = WIDTH // HEADS * KV_HEADS
    shapes = {
        "token_embd.weight": (len(TOKENS), WIDTH),
        "output_norm.weight": (WIDTH,),
        "blk.0.attn_norm.weight": (WIDTH,),
        "blk.0.attn_q.weight": (WIDTH, WIDTH),
        "blk.0.attn_k.weight": (kv_width, WIDTH),
        "blk.0.attn_v.weight": (kv_width, WIDTH),
        "blk.0.attn_output.weight": (WIDTH, WIDTH),
        "blk.0.ffn_norm.weight": (WIDTH,),
        "blk.0.ffn_gate.weight": (INNER, WIDTH),
        "blk.0.ffn_up.weight": (INNER, WIDTH),
        "blk.0.ffn_down.weight": (WIDTH, INNER),
    }
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    pre: str = "smollm",
    template: str | None = TINY_TEMPLATE,
    extra: str | None = None,
    eos: int = 1,
) -> dict[str, np.ndarray]:
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(100_000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types(TYPES)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(eos)
    if template is not None:
        writer.add_chat_template(template)
    weights = make_weights()
    stored = {**weights, **({extra: np.zeros((4, 4), np.float32)} if extra else {})}
    for name, values in stored.items():
        heads = HEADS if "attn_q" in name else KV_HEADS if "attn_k" in name else 0
        writer.add_tensor(name, permute(values, heads) if heads else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def test_a_gguf_becomes_a_complete_bundle(tmp_path: Path) -> None:
    weights = write_gguf(tmp_path / "tiny.gguf")
    manifest = import_gguf(tmp_path / "tiny.gguf", tmp_path / "bases" / "tiny", "tiny")
    bundle = tmp_path / "bases" / "tiny"
    assert read_manifest(bundle) == manifest
    assert damaged_files(bundle, manifest) == []
    assert {file.name for file in manifest.files} | {"bundle.json"} == names_in(bundle)
    assert manifest.revision == manifest.source.sha256
    assert manifest.num_parameters == sum(values.size for values in weights.values())
    assert names_in(tmp_path / "bases") == {"tiny"}


def test_the_token_that_closes_a_reply_ends_it_whatever_the_metadata_say(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", eos=0)
    import_gguf(tmp_path / "tiny.gguf", tmp_path / "tiny")
    text = json.loads((tmp_path / "tiny" / "text.json").read_bytes())
    assert (text["eos_token"], text["generation_eos"]) == ("<|im_start|>", ["<|im_start|>", "<|im_end|>"])


def test_the_weights_are_those_before_llama_cpp_reordered_them(tmp_path: Path) -> None:
    weights = write_gguf(tmp_path / "tiny.gguf")
    import_gguf(tmp_path / "tiny.gguf", tmp_path / "tiny")
    loaded = load_file(tmp_path / "tiny" / "model.safetensors")
    assert len(loaded) == len(weights)
    for name, ours in {
        "blk.0.attn_q.weight": "model.layers.0.self_attn.q_proj.weight",
        "blk.0.attn_k.weight": "model.layers.0.self_attn.k_proj.weight",
        "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight",
        "token_embd.weight": "model.embed_tokens.weight",
    }.items():
        np.testing.assert_array_equal(loaded[ours], weights[name])


def test_the_config_says_what_the_metadata_says(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    import_gguf(tmp_path / "tiny.gguf", tmp_path / "tiny")
    config = json.loads((tmp_path / "tiny" / "config.json").read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (HEADS, KV_HEADS)
    assert (config["rms_norm_eps"], config["rope_theta"]) == (1e-5, 100_000.0)
    assert config["tie_word_embeddings"] is True
    text = json.loads((tmp_path / "tiny" / "text.json").read_text())
    assert text["generation_eos"] == ["<|im_end|>"]
    assert (text["pad_token"], text["context_length"]) == (None, 128)
    assert (tmp_path / "tiny" / "chat_template.jinja").read_text() == TINY_TEMPLATE


def test_digits_stand_alone_before_spaces_are_joined() -> None:
    special = {"bos": 0, "eos": 1, "pad": None, "unk": None}
    tokenizer = build_tokenizer(Vocabulary("smollm", TOKENS, TYPES, MERGES, special, ""))
    assert tokenizer.encode("  12").tokens == ["ĠĠ", "1", "2"]
    assert tokenizer.encode("<|im_end|>1").tokens == ["<|im_end|>", "1"]


def test_the_same_conversion_twice_gives_the_same_digest(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    first = import_gguf(tmp_path / "tiny.gguf", tmp_path / "one")
    assert import_gguf(tmp_path / "tiny.gguf", tmp_path / "one") == first
    assert import_gguf(tmp_path / "tiny.gguf", tmp_path / "two").digest == first.digest


def test_a_foreign_directory_is_left_alone(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(BundleExistsError):
        import_gguf(tmp_path / "tiny.gguf", tmp_path / "mine")
    assert names_in(tmp_path / "mine") == {"notes.txt"}


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"architecture": "gemma"}, "gguf_unsupported_architecture"),
        ({"extra": "rope_freqs.weight"}, "gguf_unsupported_architecture"),
        ({"pre": "llama-bpe"}, "gguf_unsupported_tokenizer"),
        ({"template": None}, "gguf_missing_metadata"),
    ],
)
def test_what_would_come_out_wrong_is_refused(tmp_path: Path, options: dict[str, str], code: str) -> None:
    write_gguf(tmp_path / "tiny.gguf", **options)
    with pytest.raises(GgufImportError) as caught:
        import_gguf(tmp_path / "tiny.gguf", tmp_path / "bases" / "tiny")
    assert caught.value.code == code
    assert not (tmp_path / "bases" / "tiny").exists()


def test_a_template_that_cannot_be_trained_on_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", template="{{ messages }}")
    with pytest.raises(BaseImportError, match="turn_mixes_roles") as caught:
        import_gguf(tmp_path / "tiny.gguf", tmp_path / "bases" / "tiny")
    assert caught.value.code == "base_untrainable"
    assert names_in(tmp_path / "bases") == set()


def test_a_cut_file_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    whole = (tmp_path / "tiny.gguf").read_bytes()
    for size in (3, 100, len(whole) // 2, len(whole) - 64):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(GgufImportError):
            import_gguf(tmp_path / "cut.gguf", tmp_path / "bases" / "cut")
    assert not (tmp_path / "bases").exists() or names_in(tmp_path / "bases") == set()


def test_unpermute_undoes_the_order_of_llama_cpp() -> None:
    weights = np.arange(WIDTH * 3, dtype=np.float32).reshape(WIDTH, 3)
    np.testing.assert_array_equal(unpermute(permute(weights, HEADS), HEADS), weights)


def test_the_command_line_says_what_went_wrong_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"nonsense")
    assert main([str(tmp_path / "bad.gguf"), str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("gguf_unreadable: ")
    assert main([str(tmp_path / "absent.gguf"), str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("source_missing: ")
