"""Where a run trains, and what it says where that cannot be."""

from pathlib import Path

import pytest
import torch

from builders.training_runs import make_spec
from luthier_common.contract.reasons import FailureReason
from luthier_trainer.training.errors import TrainingError
from luthier_trainer.training.sft import choose_device


@pytest.mark.parametrize(
    ("built_for", "sentence"),
    [
        ("13.0", "PyTorch is built for CUDA 13.0 and can use no GPU of the node: its driver may be too old."),
        (None, "The node has a GPU, and its PyTorch is built without CUDA."),
    ],
)
def test_a_gpu_that_pytorch_cannot_use_is_the_operators(
    built_for: str | None, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    with pytest.raises(TrainingError) as failed:
        choose_device(make_spec(tmp_path, tmp_path, device="cuda"))
    assert (failed.value.reason, failed.value.message) == (FailureReason.INTERNAL, sentence)
    assert failed.value.is_retryable, "another node may do better, and this one rests"


def test_a_gpu_is_used_in_bfloat16_and_a_cpu_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for is_available, device, dtype in ((True, "cuda", torch.bfloat16), (False, "cpu", torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=is_available: found)
        for asked in ("auto", device):
            assert choose_device(make_spec(tmp_path, tmp_path, device=asked)) == (device, dtype)
