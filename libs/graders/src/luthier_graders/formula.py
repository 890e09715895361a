"""`calculate_output`: arithmetic over the scores of graders.

    sum    = term {("+" | "-") term}
    term   = signed {("*" | "/") signed}
    signed = ("-" | "+") signed | power
    power  = atom ["^" signed]                    binds to the right, and before a sign: -2^2 is -4
    atom   = number | name | function "(" sum {"," sum} ")" | "(" sum ")"

Functions are min, max, abs, floor, ceil, exp, sqrt and log (natural). Nothing is evaluated by Python: a formula becomes
a short list of steps for a stack of numbers, so that its depth and its cost are known before it runs.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from luthier_graders.errors import FormulaError

MAX_CHARS = 4096
MAX_STEPS = 512
MAX_DEPTH = 32
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[A-Za-z_]\w*)|(?P<sign>[-+*/^(),]))"
)
_ONE: dict[str, Callable[[float], float]] = {
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
_MANY: dict[str, Callable[[list[float]], float]] = {"min": min, "max": max}
FUNCTIONS = frozenset(_ONE) | frozenset(_MANY)
_TWO: dict[str, Callable[[float, float], float]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "/": lambda left, right: left / right,
    "^": math.pow,
}


class Token(NamedTuple):
    kind: str
    text: str


class Step(NamedTuple):
    """Push a number or the score of a name, or apply an operation to the last `num_inputs` numbers."""

    kind: str
    text: str
    number: float = 0.0
    num_inputs: int = 0


@dataclass(frozen=True, slots=True)
class Formula:
    """A formula that was read: the names that it uses, and its steps."""

    names: frozenset[str]
    steps: tuple[Step, ...]

    def value(self, scores: Mapping[str, float]) -> float:
        """What the formula gives for these scores; FormulaError where that is no finite number."""
        stack: list[float] = []
        for step in self.steps:
            if step.kind == "number":
                stack.append(step.number)
            elif step.kind == "name":
                stack.append(scores[step.text])
            else:
                last = stack[-step.num_inputs :]
                del stack[-step.num_inputs :]
                stack.append(_apply(step, last))
        return stack[0]


def read_formula(text: str, known: Collection[str]) -> Formula:
    """The formula, every name of which is one of the known; FormulaError says what is wrong with it."""
    if len(text) > MAX_CHARS:
        raise FormulaError(f"must have at most {MAX_CHARS} characters")
    return _Reader(_tokens(text), known).formula()


def _apply(step: Step, numbers: list[float]) -> float:
    try:
        value = float(_operation(step, numbers))
    except ZeroDivisionError:
        raise FormulaError("divides by zero") from None
    except ValueError:
        raise FormulaError(f"{step.text} has no real value here") from None
    except OverflowError:
        raise FormulaError(f"{step.text} gives too large a number") from None
    if not math.isfinite(value):
        raise FormulaError(f"{step.text} gives too large a number")
    return value


def _operation(step: Step, numbers: list[float]) -> float:
    if step.kind == "operator":
        return _TWO[step.text](*numbers)
    if step.kind == "negate":
        return -numbers[0]
    return _ONE[step.text](numbers[0]) if step.text in _ONE else _MANY[step.text](numbers)


def _tokens(text: str) -> list[Token]:
    tokens, at, end = [], 0, len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            rest = text[at:].lstrip()
            raise FormulaError(f"cannot be read at character {len(text) - len(rest) + 1}")
        tokens.append(Token(str(match.lastgroup), match[str(match.lastgroup)]))
        at = match.end()
    return tokens


class _Reader:
    """Reads tokens from left to right and writes steps."""

    def __init__(self, tokens: list[Token], known: Collection[str]) -> None:
        self._tokens = tokens
        self._known = known
        self._at = 0
        self._depth = 0
        self._names: set[str] = set()
        self._steps: list[Step] = []

    def formula(self) -> Formula:
        self._sum()
        if self._at < len(self._tokens):
            raise FormulaError(f"does not end before {self._tokens[self._at].text!r}")
        return Formula(frozenset(self._names), tuple(self._steps))

    def _sum(self) -> None:
        self._term()
        while sign := self._take("+", "-"):
            self._term()
            self._write(Step("operator", sign, num_inputs=2))

    def _term(self) -> None:
        self._signed()
        while sign := self._take("*", "/"):
            self._signed()
            self._write(Step("operator", sign, num_inputs=2))

    def _signed(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise FormulaError(f"is nested more than {MAX_DEPTH} deep")
        sign = self._take("+", "-")
        if not sign:
            self._power()
        else:
            self._signed()
            if sign == "-":
                self._write(Step("negate", "-", num_inputs=1))
        self._depth -= 1

    def _power(self) -> None:
        self._atom()
        if self._take("^"):
            self._signed()
            self._write(Step("operator", "^", num_inputs=2))

    def _atom(self) -> None:
        if self._take("("):
            self._sum()
            self._close()
            return
        if self._at == len(self._tokens):
            raise FormulaError("ends where a number, a name or a bracket is missing")
        token = self._tokens[self._at]
        self._at += 1
        if token.kind == "number":
            self._write(Step("number", token.text, number=_number(token.text)))
        elif token.kind == "name":
            self._name(token.text)
        else:
            raise FormulaError(f"has {token.text!r} where a number, a name or a bracket is missing")

    def _name(self, name: str) -> None:
        if name in FUNCTIONS:
            self._call(name)
            return
        if name not in self._known:
            shown = ", ".join(sorted(self._known)[:20])
            raise FormulaError(f"uses {name[:64]}, which is neither a grader ({shown}) nor a function")
        self._names.add(name)
        self._write(Step("name", name))

    def _call(self, name: str) -> None:
        if not self._take("("):
            raise FormulaError(f"needs brackets after {name}")
        self._sum()
        count = 1
        while self._take(","):
            self._sum()
            count += 1
        self._close()
        if name in _ONE and count > 1:
            raise FormulaError(f"gives {name} {count} values; it takes one")
        self._write(Step("function", name, num_inputs=count))

    def _close(self) -> None:
        if not self._take(")"):
            raise FormulaError("has a bracket that is not closed")

    def _take(self, *signs: str) -> str | None:
        """The next token when it is one of these signs."""
        if self._at < len(self._tokens) and self._tokens[self._at] in [Token("sign", sign) for sign in signs]:
            self._at += 1
            return self._tokens[self._at - 1].text
        return None

    def _write(self, step: Step) -> None:
        if len(self._steps) == MAX_STEPS:
            raise FormulaError(f"has more than {MAX_STEPS} parts")
        self._steps.append(step)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise FormulaError("has too large a number")
    return value
