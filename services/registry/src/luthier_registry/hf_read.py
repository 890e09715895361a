"""What a directory as Hugging Face lays it out holds: which files are taken, and what config and README say.

No tokenizer and no torch: the registry's own process reads this too, to know a directory again.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier_registry.bundle import BundleFile, BundleSource, file_sha256, files_digest
from luthier_registry.errors import BaseImportError
from luthier_registry.safetensors_read import Tensor, WeightFacts, read_header, sum_up

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"
SPECIAL_TOKENS_FILE, README_FILE = "special_tokens_map.json", "README.md"
TOKENIZER_CONFIG_FILE, GENERATION_FILE = "tokenizer_config.json", "generation_config.json"
WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
OPTIONAL_FILES = (GENERATION_FILE, TOKENIZER_CONFIG_FILE, TEMPLATE_FILE)
READ_ONLY_FILES = (SPECIAL_TOKENS_FILE, README_FILE)
"""Read for what they say, not part of the bundle."""
NESTED = ("text_config", "vision_config", "audio_config")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
STATES = ("mamba_", "ssm_", "conv_", "conv1d", "linear_conv", "lru_", "rwkv", "state_size")
"""Keys of layers that remember by other means than attention: packed rows would see each other through them."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.safetensors")
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*$", re.DOTALL | re.MULTILINE)
_LICENCE = re.compile(r"^(license|license_name):[ \t]*[\"']?([\w.+-]+)[\"']?[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class ModelConfig:
    """What `config.json` says of a model that can be trained here."""

    architecture: str
    context_length: int
    vocab_size: int
    eos_ids: tuple[int, ...]


def list_files(directory: Path) -> list[str]:
    """The files that a base is made from, by name; `BaseImportError` where one is missing."""
    if not (directory / TOKENIZER_FILE).is_file():
        raise BaseImportError(
            "base_no_tokenizer",
            f"{directory.name} has no {TOKENIZER_FILE}; transformers writes one: "
            "AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY)",
        )
    optional = [name for name in (*OPTIONAL_FILES, *READ_ONLY_FILES) if (directory / name).is_file()]
    return sorted([CONFIG_FILE, TOKENIZER_FILE, *optional, *_list_weights(directory)])


def hash_files(directory: Path, names: Iterable[str]) -> list[BundleFile]:
    """What each file holds; links are followed."""
    return [
        BundleFile(name=name, bytes=(directory / name).stat().st_size, sha256=file_sha256(directory / name))
        for name in names
    ]


def source_of(directory: Path, files: list[BundleFile]) -> BundleSource:
    """The state of a directory: one sha256 over name and sha256 of every file that was read."""
    num_bytes = sum(file.bytes for file in files)
    return BundleSource(file=directory.resolve().name, bytes=num_bytes, sha256=files_digest(files))


def read_json(directory: Path, name: str) -> dict[str, Any]:
    """A JSON object; an empty one where the file is missing."""
    path = directory / name
    if not path.is_file():
        return {}
    try:
        read = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BaseImportError("base_bad_config", f"{name} is not JSON") from error
    if not isinstance(read, dict):
        raise BaseImportError("base_bad_config", f"{name} is not a JSON object")
    return read


def read_config(directory: Path) -> ModelConfig:
    """The model's config, or `BaseImportError` where it is none that can be trained here."""
    config, generation = read_json(directory, CONFIG_FILE), read_json(directory, GENERATION_FILE)
    for name, content in ((CONFIG_FILE, config), (TOKENIZER_CONFIG_FILE, read_json(directory, TOKENIZER_CONFIG_FILE))):
        if content.get("auto_map"):
            raise BaseImportError(
                "base_needs_code",
                f"{name} asks for code of its own (auto_map), and none is run here; where transformers knows "
                f"the model without it, remove auto_map from {name}",
            )
    if config.get("quantization_config") or config.get("compression_config"):
        raise BaseImportError("base_quantised", "the checkpoint is quantised: take the model in its own precision")
    return ModelConfig(
        architecture=_architecture(config),
        context_length=_positive(config, "max_position_embeddings"),
        vocab_size=_positive(config, "vocab_size"),
        eos_ids=_ids(generation.get("eos_token_id", config.get("eos_token_id"))),
    )


def read_weights(directory: Path) -> WeightFacts:
    """Numbers from the headers of all weights; every tensor that the index names must be where it says."""
    tensors: dict[str, Tensor] = {}
    headers = {name: read_header(directory / name) for name in _list_weights(directory) if name != INDEX_FILE}
    for header in headers.values():
        tensors |= header
    if WEIGHTS_FILE not in headers:
        for tensor, shard in _read_index(directory).items():
            if tensor not in headers[shard]:
                raise BaseImportError("base_damaged_weights", f"{shard} lacks {tensor}, which {INDEX_FILE} says it has")
    return sum_up(tensors.values())


def read_licence(directory: Path) -> str | None:
    """The licence that the front matter of the README names."""
    path = directory / README_FILE
    matter = _FRONT_MATTER.match(path.read_text(errors="replace")) if path.is_file() else None
    found = dict(_LICENCE.findall(matter[1])) if matter else {}
    licence = found.get("license")
    return found.get("license_name", licence) if licence == "other" else licence


def _list_weights(directory: Path) -> list[str]:
    if (directory / WEIGHTS_FILE).is_file():
        return [WEIGHTS_FILE]
    if not (directory / INDEX_FILE).is_file():
        if any(path.suffix in PICKLES for path in directory.iterdir()):
            raise BaseImportError(
                "base_pickled_weights",
                f"{directory.name} has its weights only as pickles, which can run code; save them as safetensors",
            )
        raise BaseImportError("base_no_weights", f"{directory.name} has neither {WEIGHTS_FILE} nor {INDEX_FILE}")
    shards = sorted(set(_read_index(directory).values()))
    for shard in shards:
        if not (directory / shard).is_file():
            raise BaseImportError("base_missing_shard", f"{shard} is missing, which {INDEX_FILE} names")
    return [INDEX_FILE, *shards]


def _read_index(directory: Path) -> dict[str, str]:
    """The shard of each tensor."""
    index = read_json(directory, INDEX_FILE).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise BaseImportError("base_damaged_weights", f"{INDEX_FILE} has no weight_map")
    for shard in index.values():
        if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard):
            raise BaseImportError("base_damaged_weights", f"{INDEX_FILE} names a shard {str(shard)[:100]!r}")
    return index


def _architecture(config: dict[str, Any]) -> str:
    named = config.get("architectures")
    architecture = named[0] if isinstance(named, list) and len(named) == 1 else None
    if not isinstance(architecture, str):
        raise BaseImportError("base_bad_config", f"{CONFIG_FILE} does not name one architecture")
    if why := _why_not_trained(config, architecture):
        raise BaseImportError("base_unsupported_architecture", f"{architecture[:100]} {why}")
    return architecture


def _why_not_trained(config: dict[str, Any], architecture: str) -> str | None:
    nested = [key for key in NESTED if key in config]
    if nested or config.get("is_encoder_decoder") or not architecture.endswith("ForCausalLM"):
        has = f" (it has a {nested[0]})" if nested else ""
        return f"is not a plain text model{has}: only decoders named ...ForCausalLM are trained"
    if any(type(number := config.get(key)) is int and number > 1 for key in EXPERTS):
        return "is a mixture of experts: adapters of its experts cannot be served"
    if found := sorted(key for key in config if key.startswith(STATES)):
        return f"has layers other than attention ({found[0][:50]}), which are not trained here"
    return None


def _positive(config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or value <= 0:
        raise BaseImportError("base_bad_config", f"{CONFIG_FILE} does not say {key}")
    return value


def _ids(value: object) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(index) is int for index in ids):
        raise BaseImportError("base_bad_config", "eos_token_id is neither a number nor a list of numbers")
    return tuple(ids)
