"""Checkpoints of a run: when one is due by time, and the weights in it."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from luthier_trainer.checkpoints import MODEL_FILES

_WORK_A_SAVE = 10
_SAID_OF_FILES = ("inline_container.cc", "iostream error")
"""PyTorch names the place or the stream, and no errno."""


class SaveClock:
    """Due so many seconds after the last save, yet never before ten times what that one took; None: never."""

    def __init__(self, every_s: float | None) -> None:
        self._every_s = every_s
        self._due_at_s = float("inf")

    def saved(self, began_at_s: float, ended_at_s: float) -> None:
        """A save was made between these instants; where training begins there is nothing to save yet."""
        if self._every_s is not None:
            self._due_at_s = ended_at_s + max(self._every_s, _WORK_A_SAVE * (ended_at_s - began_at_s))

    def is_due(self, now_s: float) -> bool:
        return now_s >= self._due_at_s


def is_of_storage(error: BaseException) -> bool:
    """Whether an error says that a file could not be written or read; some writers say it by their text only."""
    match error:
        case OSError():
            return True
        case SafetensorError():
            return "I/O error" in str(error)
        case RuntimeError():
            return any(words in str(error) for words in _SAID_OF_FILES)
    return False


def save_weights(model: Any, directory: Path, base_name: str) -> None:
    """Adapter (or all weights) as safetensors, with a config that names the base and no path of this machine."""
    if not hasattr(model, "peft_config"):
        model.save_pretrained(directory)
        for path in list(directory.iterdir()):
            if path.name not in MODEL_FILES:
                path.unlink()
        return
    model.save_pretrained(directory, save_embedding_layers=False)
    (directory / "README.md").unlink(missing_ok=True)
    path = directory / "adapter_config.json"
    config = json.loads(path.read_bytes())
    config["base_model_name_or_path"] = base_name
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
