"""Named places where a test can break a process: `await failpoint("relay.after_send")` at every boundary.

Off (one comparison with None) unless the environment asks:

    LUTHIER_FAILPOINTS       name=kill:0.1;other=raise;third=delay:5;fourth=lost;fifth=freeze:6;relay.*=kill:0.5*1
    LUTHIER_FAILPOINTS_SEED  makes the dice repeatable
    LUTHIER_FAILPOINTS_LOG   file that gets one line `name what pid` for the first pass of each name and for each fault

Faults: `kill[:probability]` is SIGKILL to this process, `raise[:probability]` a transient error, `lost[:probability]`
the error that a caller sees when the work was done and the reply did not come, `delay:seconds[:probability]` a pause of
this coroutine, `freeze:seconds[:probability]` one of the whole event loop: leases run out that others renew meanwhile.
`*count` at the end bounds how often the fault happens, over all processes that share the log file: without it a fault
at start-up would never let a process through.
"""

import ast
import asyncio
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path

from luthier_common.kit.errors import TransientError

_RULE = re.compile(
    r"^(?P<names>[\w.*-]+)=(?P<what>kill|raise|lost|delay|freeze)(?P<numbers>(?::[0-9.]+)*)(?:\*(?P<count>\d+))?$"
)
_CALLS = ("failpoint", "failpoint_sync")


class FailPointError(TransientError):
    """A fault that a fail point raised on purpose."""

    code = "fail_point"


class ReplyLostError(FailPointError):
    """The work was done; its answer is lost on purpose."""


async def failpoint(name: str) -> None:
    """A place where a fault may be injected, in a coroutine."""
    if _plan is not None and (pause_s := _plan.reach(name)):
        await asyncio.sleep(pause_s)


def failpoint_sync(name: str) -> None:
    """A place where a fault may be injected, in plain code."""
    if _plan is not None and (pause_s := _plan.reach(name)):
        time.sleep(pause_s)


def configure_failpoints(spec: str = "", seed: str = "", log_path: str = "") -> None:
    """Replaces the faults of this process; with nothing given, switches all of them off. A bad spec is a ValueError."""
    global _plan  # noqa: PLW0603 (one comparison with None is all that a fail point may cost)
    _plan = _Plan(spec, seed, log_path) if spec or log_path else None


def failpoint_names(*packages: str) -> dict[str, str]:
    """Every name used in the source of these packages, with where it stands (`file:line`).

    Names must be literals, each in one place (ValueError otherwise): the crash matrix is made from this list.
    """
    found: dict[str, str] = {}
    for package in packages:
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            for path in sorted(Path(folder).rglob("*.py")):
                for name, place in _names_in(path) if path != Path(__file__) else ():
                    if name in found:
                        raise ValueError(f"the fail point {name} stands in two places: {found[name]} and {place}")
                    found[name] = place
    return dict(sorted(found.items()))


def _names_in(path: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CALLS):
            continue
        name = node.args[0] if node.args else None
        if not (isinstance(name, ast.Constant) and isinstance(name.value, str)):
            raise ValueError(f"{path}:{node.lineno}: the name of a fail point must be a literal")
        yield name.value, f"{path.name}:{node.lineno}"


@dataclass(frozen=True, slots=True)
class _Rule:
    names: str
    what: str
    probability: float
    pause_s: float
    count: int | None


class _Plan:
    def __init__(self, spec: str, seed: str, log_path: str) -> None:
        self._rules = [_parse_rule(part.strip()) for part in spec.split(";") if part.strip()]
        self._seed = seed
        self._log_path = log_path
        self._dice: dict[str, random.Random] = {}
        self._done: list[str] = []
        self._spent: set[str] = set()

    def reach(self, name: str) -> float:
        """Logs, then kills, raises, or answers how long to pause."""
        if name not in self._dice:
            # Earlier faults are part of the seed: a restarted process must not throw the same fatal dice for ever.
            self._dice[name] = random.Random(f"{self._seed}/{name}/{len(self._faults(name))}" if self._seed else None)
            self._note(name, "pass")
        rule = next((r for r in self._rules if fnmatchcase(name, r.names)), None) if name not in self._spent else None
        if rule is None or self._dice[name].random() >= rule.probability:
            return 0.0
        if rule.count is not None and len(self._faults(name)) >= rule.count:
            self._spent.add(name)
            return 0.0
        self._note(name, rule.what)
        return _break(rule, name)

    def _faults(self, name: str) -> list[str]:
        lines = self._done
        if self._log_path and Path(self._log_path).exists():
            lines = Path(self._log_path).read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line.startswith(f"{name} ") and not line.startswith(f"{name} pass")]

    def _note(self, name: str, what: str) -> None:
        line = f"{name} {what} {os.getpid()}"
        if not self._log_path:
            self._done.append(line)
            return
        handle = os.open(self._log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, f"{line}\n".encode())
        finally:
            os.close(handle)


def _break(rule: _Rule, name: str) -> float:
    if rule.what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if rule.what == "raise":
        raise FailPointError(name)
    if rule.what == "lost":
        raise ReplyLostError(name)
    if rule.what == "freeze":
        time.sleep(rule.pause_s)
        return 0.0
    return rule.pause_s


def _parse_rule(text: str) -> _Rule:
    match = _RULE.match(text)
    if match is None:
        raise ValueError(f"not a fail point rule: {text!r}")
    numbers = [float(number) for number in match["numbers"].split(":")[1:]]
    pause_s = 0.0
    if match["what"] in ("delay", "freeze"):
        if not numbers:
            raise ValueError(f"{match['what']} needs seconds: {text!r}")
        pause_s = numbers.pop(0)
    if len(numbers) > 1 or any(not 0 <= number <= 1 for number in numbers):
        raise ValueError(f"a probability lies between 0 and 1: {text!r}")
    count = int(match["count"]) if match["count"] else None
    return _Rule(match["names"], match["what"], numbers[0] if numbers else 1.0, pause_s, count)


_plan: _Plan | None = None
configure_failpoints(
    os.environ.get("LUTHIER_FAILPOINTS", ""),
    os.environ.get("LUTHIER_FAILPOINTS_SEED", ""),
    os.environ.get("LUTHIER_FAILPOINTS_LOG", ""),
)
