"""A directory as Hugging Face lays it out becomes a bundle without copies of its weights, or a refusal with a code."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tests.builders.bases import TINY_TEMPLATE, make_tiny_base

from luthier_registry.base_import import import_base, main
from luthier_registry.bundle import BundleManifest, damaged_files, read_manifest
from luthier_registry.errors import BaseImportError
from luthier_registry.sources import SourceKind, identity_of, kind_of, look_at
from luthier_text import TextBundle, TrainRow

README = "---\nlicense: apache-2.0\ntags:\n- test\n---\n# Tiny\nlicense: none of this\n"
INDEX = "model.safetensors.index.json"
THOUGHTFUL_PROMPT = TINY_TEMPLATE.replace("{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>assistant\n<think>\n' }}")


def make_hf_directory(directory: Path) -> Path:
    """A tiny Llama as `hf download` leaves it; the template stands in the tokenizer's config."""
    make_tiny_base(directory)
    for name in ("bundle.json", "text.json", "chat_template.jinja"):
        (directory / name).unlink()
    tokens = {
        "bos_token": {"content": "<|im_start|>", "special": True},
        "eos_token": "<|im_end|>",
        "pad_token": None,
        "unk_token": "<|endoftext|>",
        "chat_template": TINY_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(tokens))
    (directory / "README.md").write_text(README)
    return directory


def split_weights(directory: Path) -> None:
    """Two shards and their index instead of one file."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
    for shard, held in parts.items():
        save_file({name: tensors[name] for name in held}, directory / shard, metadata={"format": "pt"})
    where = {name: shard for shard, held in parts.items() for name in held}
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def change_json(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        path = directory / name
        path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))

    return change


def take(directory: Path, tmp_path: Path) -> BundleManifest:
    return import_base(directory, tmp_path / "bundles" / "tiny", "tiny")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_hf_directory(tmp_path / "Tiny-Instruct")


def test_a_directory_becomes_a_complete_bundle_that_links_to_it(directory: Path, tmp_path: Path) -> None:
    manifest = take(directory, tmp_path)
    bundle = tmp_path / "bundles" / "tiny"
    assert read_manifest(bundle) == manifest
    assert damaged_files(bundle, manifest) == []
    assert {file.name for file in manifest.files} == {
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "text.json",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    tensors = load_file(directory / "model.safetensors").values()
    assert manifest.num_parameters == sum(tensor.size for tensor in tensors)
    assert (manifest.architecture, manifest.dtype, manifest.licence) == ("LlamaForCausalLM", "float32", "apache-2.0")
    assert (manifest.context_length, manifest.source.file) == (256, "Tiny-Instruct")
    assert (bundle / "model.safetensors").resolve() == directory / "model.safetensors", "weights are not copied"


def test_its_text_settings_come_from_the_tokenizers_and_the_generations_config(directory: Path, tmp_path: Path) -> None:
    change_json("generation_config.json", eos_token_id=[2, 0])(directory)
    take(directory, tmp_path)
    text = TextBundle.load(tmp_path / "bundles" / "tiny")
    assert text.config.special_tokens == {
        "bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>",
    }  # fmt: skip
    assert text.config.generation_eos == ["<|im_end|>", "<|endoftext|>"]
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    assert isinstance(text.train_row(row), TrainRow)


def test_the_token_that_closes_a_reply_ends_it_whatever_the_configs_say(directory: Path, tmp_path: Path) -> None:
    change_json("generation_config.json", eos_token_id=0)(directory)
    change_json("tokenizer_config.json", eos_token="<|endoftext|>")(directory)
    take(directory, tmp_path)
    assert TextBundle.load(tmp_path / "bundles" / "tiny").eos_ids == {0, 2}


def test_the_revision_is_known_without_the_conversion_and_follows_every_file(directory: Path, tmp_path: Path) -> None:
    manifest = take(directory, tmp_path)
    assert kind_of(directory) is SourceKind.DIRECTORY
    assert identity_of(directory, SourceKind.DIRECTORY) == (manifest.revision, manifest.converter)
    assert take(directory, tmp_path) == manifest, "the same source again is the bundle that is there"
    seen = look_at("tiny", directory)
    (directory / "README.md").write_text(README.replace("apache-2.0", "mit"))
    assert identity_of(directory, SourceKind.DIRECTORY)[0] != manifest.revision
    assert look_at("tiny", directory) != seen


def test_links_of_the_hubs_cache_are_followed(directory: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    for path in directory.iterdir():
        (snapshot / path.name).symlink_to(Path("..", "..", directory.name, path.name))
    linked = take(snapshot, tmp_path)
    bundle = tmp_path / "bundles" / "tiny"
    assert damaged_files(bundle, linked) == []
    assert linked.digest == import_base(directory, tmp_path / "other", "tiny").digest


def test_shards_are_taken_with_their_index(directory: Path, tmp_path: Path) -> None:
    whole = import_base(directory, tmp_path / "whole", "tiny")
    split_weights(directory)
    manifest = take(directory, tmp_path)
    names = {file.name for file in manifest.files}
    assert {INDEX, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"} <= names
    assert "model.safetensors" not in names
    assert manifest.num_parameters == whole.num_parameters


def test_a_template_file_wins_and_of_several_templates_the_default(directory: Path, tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "{{ 1 }}"}, {"name": "default", "template": TINY_TEMPLATE}]
    change_json("tokenizer_config.json", chat_template=named)(directory)
    import_base(directory, tmp_path / "named", "tiny")
    assert (tmp_path / "named" / "chat_template.jinja").read_text() == TINY_TEMPLATE
    (directory / "chat_template.jinja").write_text("{# mine #}" + TINY_TEMPLATE)
    import_base(directory, tmp_path / "own", "tiny")
    assert (tmp_path / "own" / "chat_template.jinja").read_text().startswith("{# mine #}")


def test_a_template_that_needs_todays_date_gets_a_fixed_one(directory: Path, tmp_path: Path) -> None:
    dated = "{{ strftime_now('%d %B %Y') + '\n' }}" + TINY_TEMPLATE
    change_json("tokenizer_config.json", chat_template=dated)(directory)
    take(directory, tmp_path)
    text = TextBundle.load(tmp_path / "bundles" / "tiny")
    assert text.config.variables == {"strftime_now": "2025-01-01"}
    assert text.render([{"role": "user", "content": "Hi"}]).startswith("01 January 2025\n")


@pytest.mark.parametrize(
    ("front_matter", "licence"),
    [
        ('---\r\nlicense: "mit"\r\n---\r\n', "mit"),
        ("---\nlicense: other\nlicense_name: qwen-research\n---\n", "qwen-research"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlanguage: en\n---\n", None),
        ("# no front matter\nlicense: mit\n", None),
    ],
)
def test_the_licence_is_what_the_readme_says(
    directory: Path, tmp_path: Path, front_matter: str, licence: str | None
) -> None:
    (directory / "README.md").write_bytes(front_matter.encode())
    assert take(directory, tmp_path).licence == licence


def _pickles_only(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def _lost_shard(directory: Path) -> None:
    split_weights(directory)
    (directory / "model-00002-of-00002.safetensors").unlink()


def _stray_shard(directory: Path) -> None:
    split_weights(directory)
    shutil.copy(directory / "model-00001-of-00002.safetensors", directory / "model-00002-of-00002.safetensors")


def _foreign_shard(directory: Path) -> None:
    split_weights(directory)
    change_json(INDEX, weight_map={"x": "../model.safetensors"})(directory)


def _cut(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def _pointer(directory: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    (directory / "model.safetensors").write_text(pointer)


def _integers(directory: Path) -> None:
    save_file({"model.norm.weight": np.zeros(4, np.int8)}, directory / "model.safetensors")


def _write(name: str, content: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).write_text(content) and None


def _remove(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


@pytest.mark.parametrize(
    ("spoil", "code", "says"),
    [
        (_pickles_only, "base_pickled_weights", "safetensors"),
        (_remove("model.safetensors"), "base_no_weights", "model.safetensors"),
        (_lost_shard, "base_missing_shard", "model-00002-of-00002.safetensors is missing"),
        (_stray_shard, "base_damaged_weights", "lacks"),
        (_foreign_shard, "base_damaged_weights", "names a shard"),
        (_cut, "base_damaged_weights", "bytes of weights"),
        (_pointer, "base_damaged_weights", "Git LFS pointer"),
        (_write("model.safetensors", "{}"), "base_damaged_weights", "no safetensors header"),
        (_integers, "base_quantised", "I8"),
        (change_json("config.json", quantization_config={"bits": 4}), "base_quantised", "its own precision"),
        (change_json("config.json", auto_map={"AutoModel": "x.Y"}), "base_needs_code", "config.json"),
        (change_json("tokenizer_config.json", auto_map={"AutoTokenizer": []}), "base_needs_code", "tokenizer_config"),
        (change_json("config.json", architectures=["T5Model"]), "base_unsupported_architecture", "T5Model"),
        (change_json("config.json", vision_config={}), "base_unsupported_architecture", "vision_config"),
        (change_json("config.json", is_encoder_decoder=True), "base_unsupported_architecture", "ForCausalLM"),
        (change_json("config.json", num_local_experts=8), "base_unsupported_architecture", "mixture of experts"),
        (change_json("config.json", mamba_d_conv=4), "base_unsupported_architecture", "mamba_d_conv"),
        (change_json("config.json", architectures=None), "base_bad_config", "architecture"),
        (change_json("config.json", max_position_embeddings=None), "base_bad_config", "max_position_embeddings"),
        (_write("config.json", "{"), "base_bad_config", "config.json"),
        (_remove("tokenizer.json"), "base_no_tokenizer", "save_pretrained"),
        (_write("tokenizer.json", "{}"), "base_bad_tokenizer", "tokenizer.json"),
        (change_json("tokenizer_config.json", eos_token="<nowhere>"), "base_untrainable", "<nowhere>"),
        (change_json("generation_config.json", eos_token_id=9999), "base_bad_tokenizer", "reply's end"),
        (change_json("config.json", vocab_size=100), "base_bad_tokenizer", "embedding"),
        (change_json("tokenizer_config.json", chat_template=None), "base_no_chat_template", "instruct"),
        (change_json("tokenizer_config.json", chat_template="{% if %}"), "base_untrainable", "compile"),
        (change_json("tokenizer_config.json", chat_template="Hello"), "base_untrainable", "message_not_rendered"),
        (change_json("tokenizer_config.json", chat_template="{{ messages[9].x.y }}"), "base_untrainable", "refuses"),
        (change_json("tokenizer_config.json", chat_template=THOUGHTFUL_PROMPT), "base_untrainable", "both alike"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_with_its_reason(
    directory: Path, tmp_path: Path, spoil: Callable[[Path], None], code: str, says: str
) -> None:
    spoil(directory)
    with pytest.raises(BaseImportError, match=says) as caught:
        take(directory, tmp_path)
    assert caught.value.code == code
    assert not (tmp_path / "bundles").exists() or list((tmp_path / "bundles").iterdir()) == []


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"not JSON",
        b"[" * 20_000,
        b'{"x": {"dtype": "F32"}}',
        b'{"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}',
        b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}',
        b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        b'{"x": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}',
        b"{}",
    ],
)
def test_a_header_that_lies_is_refused(directory: Path, tmp_path: Path, header: bytes) -> None:
    data = b"" if header == b"{}" else bytes(4)
    (directory / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    with pytest.raises(BaseImportError) as caught:
        take(directory, tmp_path)
    assert caught.value.code == "base_damaged_weights"


def test_masks_beside_the_weights_are_not_counted(directory: Path, tmp_path: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    before = sum(tensor.size for tensor in tensors.values())
    save_file(tensors | {"mask": np.ones(8, np.bool_)}, directory / "model.safetensors", metadata={"format": "pt"})
    assert take(directory, tmp_path).num_parameters == before


def test_the_command_line_says_in_one_line_what_a_path_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty"), str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("source_unknown: ")
    assert main([str(tmp_path / "absent"), str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("source_missing: ")


def test_a_source_that_this_user_may_not_read_is_told_with_the_user(tmp_path: Path) -> None:
    """Weights are often readable for their owner alone, and containers run as another user."""
    directory = make_hf_directory(tmp_path / "Tiny")
    weights = directory / "model.safetensors"
    weights.chmod(0)
    before = look_at("Tiny", directory)
    if was_root := os.geteuid() == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(BaseImportError, match=r"^Permission denied: .*Tiny.* \(as user \d+\)") as refused:
            identity_of(directory, SourceKind.DIRECTORY)
    finally:
        if was_root:
            os.seteuid(0)
    assert refused.value.code == "io_error"
    weights.chmod(0o644)
    assert look_at("Tiny", directory) != before, "it is tried again at once"
