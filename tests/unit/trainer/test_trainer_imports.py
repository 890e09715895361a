"""The service never imports torch."""

import subprocess
import sys

CODE = """
import sys
import luthier_trainer.bootstrap
heavy = {"torch", "transformers", "trl", "peft", "accelerate", "datasets"} & set(sys.modules)
assert not heavy, heavy
assert not [name for name in sys.modules if name.startswith("luthier_trainer.training")]
"""


def test_the_service_imports_no_torch_and_nothing_that_trains() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
