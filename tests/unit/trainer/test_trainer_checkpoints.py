"""A checkpoint is believed only when every byte is there."""

from pathlib import Path

import pytest

from luthier_trainer.checkpoints import MANIFEST_FILE, STATE_FILES, read_manifest, seal, staged, verify

FILES = (*STATE_FILES, "adapter_config.json", "adapter_model.safetensors")


def make_checkpoint(target: Path) -> Path:
    with staged(target) as staging:
        for name in FILES:
            (staging / name).write_text(f"content of {name}")
        seal(staging, "checkpoint", "ftjob-1", 1, 5, {"train_loss": 1.5})
    return target


def test_a_written_checkpoint_is_whole(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "step-5")
    assert verify(checkpoint) == []
    assert read_manifest(checkpoint).metrics == {"train_loss": 1.5}
    assert [path.name for path in tmp_path.iterdir()] == ["step-5"]


@pytest.mark.parametrize("name", [*FILES, MANIFEST_FILE])
def test_a_missing_file_is_found(tmp_path: Path, name: str) -> None:
    checkpoint = make_checkpoint(tmp_path / "step-5")
    (checkpoint / name).unlink()
    assert verify(checkpoint) == [f"{name} is missing"]


@pytest.mark.parametrize("name", FILES)
def test_changed_bytes_are_found(tmp_path: Path, name: str) -> None:
    checkpoint = make_checkpoint(tmp_path / "step-5")
    (checkpoint / name).write_text((checkpoint / name).read_text().replace("content", "CONTENT"))
    assert verify(checkpoint) == [f"{name} has other bytes than the manifest says"]


def test_a_cut_manifest_and_one_without_state_are_found(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "step-5")
    (checkpoint / MANIFEST_FILE).write_text("{")
    assert verify(checkpoint) == ["manifest.json cannot be read"]
    with staged(tmp_path / "step-6") as staging:
        (staging / "adapter_model.safetensors").write_text("weights")
        seal(staging, "checkpoint", "ftjob-1", 1, 6, {})
    assert verify(tmp_path / "step-6") == [f"the manifest does not name {name}" for name in STATE_FILES]


def test_a_manifest_cannot_name_a_file_elsewhere(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "step-5")
    text = (checkpoint / MANIFEST_FILE).read_text()
    (checkpoint / MANIFEST_FILE).write_text(text.replace('"optimizer.pt"', '"../optimizer.pt"'))
    assert verify(checkpoint) == ["manifest.json cannot be read"]


def test_a_save_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    def break_off() -> None:
        with staged(tmp_path / "step-5") as staging:
            (staging / "optimizer.pt").write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk"):
        break_off()
    assert list(tmp_path.iterdir()) == []
