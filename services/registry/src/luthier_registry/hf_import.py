"""A directory as Hugging Face lays it out becomes a base bundle, without torch.

Its files are linked, not copied: what the bundle holds is hashed here and again while it is uploaded. Added are
`text.json` and, where it stands in `tokenizer_config.json`, `chat_template.jinja`. A base whose template or tokenizer
cannot be trained on is refused here, by rendering one chat.
"""

from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from tokenizers import Tokenizer

from luthier_registry.bundle import (
    BundleFile,
    BundleManifest,
    files_digest,
    link_bundle_file,
    present_bundle,
    publish_bundle,
    staging_directory,
    write_bundle_file,
)
from luthier_registry.default_base import HF_CONVERTER
from luthier_registry.errors import BaseImportError
from luthier_registry.hf_read import (
    READ_ONLY_FILES,
    SPECIAL_TOKENS_FILE,
    TOKENIZER_CONFIG_FILE,
    ModelConfig,
    hash_files,
    list_files,
    read_config,
    read_json,
    read_licence,
    read_weights,
    source_of,
)
from luthier_registry.trial import choose_text
from luthier_text import TEMPLATE_FILE, TEXT_FILE, TOKENIZER_FILE, TextConfig


def import_directory(directory: Path, target: Path, name: str) -> BundleManifest:
    """Make the bundle directory `target` of a Hugging Face directory and return its manifest.

    The bundle appears complete or not at all. One of the same files by the same converter is left as it is; anything
    else at `target` is `BundleExistsError`. The directory must stay where it is for as long as the bundle is used.
    """
    names = list_files(directory)
    config, weights = read_config(directory), read_weights(directory)
    template = read_template(directory)
    tokenizer, named = (directory / TOKENIZER_FILE).read_bytes(), _text_config(directory, config)
    text = choose_text(tokenizer, template, named, config.vocab_size)
    files = hash_files(directory, names)
    source = source_of(directory, files)
    if present := present_bundle(target, source.sha256, HF_CONVERTER):
        return present
    with staging_directory(target) as staging:
        taken = [file for file in files if file.name not in READ_ONLY_FILES]
        for file in taken:
            link_bundle_file(directory / file.name, staging)
        made = [*taken, *_write_texts(staging, template, text)]
        manifest = BundleManifest(
            name=name,
            revision=source.sha256,
            digest=files_digest(made),
            architecture=config.architecture,
            licence=read_licence(directory),
            num_parameters=weights.num_parameters,
            dtype=weights.dtype,
            context_length=config.context_length,
            source=source,
            converter=HF_CONVERTER,
            files=sorted(made, key=lambda file: file.name),
        )
        return publish_bundle(staging, target, manifest)


def read_template(directory: Path) -> str:
    """The chat template: from its own file, else from the tokenizer's config; of several the one named default."""
    path = directory / TEMPLATE_FILE
    template: Any = path.read_bytes().decode(errors="replace") if path.is_file() else None
    if template is None:
        template = read_json(directory, TOKENIZER_CONFIG_FILE).get("chat_template")
    if isinstance(template, list):
        template = next((each.get("template") for each in template if each.get("name") == "default"), None)
    if not isinstance(template, str) or not template.strip():
        raise BaseImportError(
            "base_no_chat_template",
            f"{directory.name} has no chat template: take the model's instruct variant, or add {TEMPLATE_FILE}",
        )
    return template


def _text_config(directory: Path, config: ModelConfig) -> TextConfig:
    tokenizer = _open_tokenizer(directory / TOKENIZER_FILE)
    named = {**read_json(directory, SPECIAL_TOKENS_FILE), **read_json(directory, TOKENIZER_CONFIG_FILE)}
    special = {
        role: _special_token(role, named.get(role)) for role in ("bos_token", "eos_token", "pad_token", "unk_token")
    }
    for role in ("pad_token", "unk_token"):
        # Nobody's text becomes one of these: a name without an id is of no use, and of no harm.
        if special[role] is not None and tokenizer.token_to_id(special[role]) is None:
            special[role] = None
    ends = [tokenizer.id_to_token(index) for index in config.eos_ids]
    if None in ends or not (ends or special["eos_token"]):
        raise BaseImportError("base_bad_tokenizer", "the config names no token, or an unknown one, as a reply's end")
    return TextConfig(**special, generation_eos=list(dict.fromkeys(ends)), context_length=config.context_length)


def _open_tokenizer(path: Path) -> Any:
    try:
        return Tokenizer.from_file(str(path))
    # tokenizers raises bare Exception for a file that it cannot read.
    except Exception as error:
        raise BaseImportError("base_bad_tokenizer", f"{path.name} cannot be read by tokenizers") from error


def _special_token(role: str, value: object) -> str | None:
    """A token, which is written as a text or as an object with its content."""
    content = value.get("content") if isinstance(value, dict) else value
    if content is not None and not isinstance(content, str):
        raise BaseImportError("base_bad_tokenizer", f"{role} is not a text")
    return content or None


def _write_texts(staging: Path, template: str, text: TextConfig) -> list[BundleFile]:
    texts = {TEXT_FILE: text.model_dump_json(indent=2) + "\n", TEMPLATE_FILE: template}
    return [
        write_bundle_file(staging / name, partial(_write_text, content))
        for name, content in texts.items()
        if not (staging / name).exists()
    ]


def _write_text(text: str, stream: BinaryIO) -> None:
    stream.write(text.encode())
