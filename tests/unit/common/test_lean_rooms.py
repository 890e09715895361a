"""Rooms start without torch: only inference, once a base is loaded, and the trainer's child pay for it."""

import subprocess
import sys

import pytest

ROOMS = ("api", "file_validator", "scheduler", "trainer", "registry", "inference")
HEAVY = ("torch", "transformers", "peft", "trl", "datasets", "numpy")


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_starts_without_torch_and_its_family(room: str) -> None:
    script = f"import sys, luthier_{room}.__main__; print(*[name for name in {HEAVY} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []
