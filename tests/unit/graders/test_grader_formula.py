"""`calculate_output`: what it gives, and what it refuses."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier_graders.errors import FormulaError
from luthier_graders.formula import MAX_DEPTH, MAX_STEPS, read_formula

SCORES = {"a": 0.5, "b": 3.0, "c_1": -2.0}
PYTHON = {
    "abs": abs,
    "floor": lambda x: float(math.floor(x)),
    "ceil": lambda x: float(math.ceil(x)),
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
    "min": lambda *x: min(x),
    "max": lambda *x: max(x),
}


def value(text: str) -> float:
    return read_formula(text, SCORES).value(SCORES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", 0.5),
        ("0.7 * a + 0.3 * b", 1.25),
        ("2 ^ 3", 8),
        ("2 ^ 3 ^ 2", 512),
        ("-2 ^ 2", -4),
        ("2 ^ -1", 0.5),
        ("8 / 2 / 2", 2),
        ("5 - 2 - 1", 2),
        ("- -a", 0.5),
        ("2 * -b", -6),
        ("(a + b) * 2", 7),
        ("max(a, b, c_1) - min(a, b)", 2.5),
        ("min(b)", 3),
        ("abs(c_1) + floor(1.7) + ceil(1.2)", 5),
        ("sqrt(4) + exp(0) + log(1)", 3),
        ("1e2 + .5 + 1.", 101.5),
        (" \n a \t", 0.5),
    ],
)
def test_gives_what_arithmetic_gives(text: str, expected: float) -> None:
    assert value(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "ends where"),
        ("a +", "ends where"),
        ("(a", "not closed"),
        ("max(a, b", "not closed"),
        ("a)", "does not end before ')'"),
        ("a b", "does not end before 'b'"),
        ("2a", "does not end before 'a'"),
        ("a ** b", "has '*' where"),
        ("d", "uses d, which is neither a grader (a, b, c_1) nor a function"),
        ("max", "needs brackets after max"),
        ("max()", "has ')' where"),
        ("sqrt(a, b)", "gives sqrt 2 values; it takes one"),
        ("a(1)", "does not end before '('"),
        ("a; b", "cannot be read at character 2"),
        ("a.__class__", "cannot be read at character 2"),
        ("'x' * 9", "cannot be read at character 1"),
        ("é", "cannot be read at character 1"),
        ("__import__('os')", "cannot be read"),
        ("lambda: 1", "cannot be read"),
        ("1e999", "too large a number"),
        ("(" * 5000 + "a", "at most 4096"),
        ("(" * 4000 + "a", f"more than {MAX_DEPTH} deep"),
        ("-" * 4000 + "a", f"more than {MAX_DEPTH} deep"),
        ("2^" * 2000 + "2", f"more than {MAX_DEPTH} deep"),
        ("+".join(["a"] * 2000), f"more than {MAX_STEPS} parts"),
    ],
)
def test_refuses_what_is_no_formula(text: str, says: str) -> None:
    with pytest.raises(FormulaError) as caught:
        read_formula(text, SCORES)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "text", ["1 / (a - a)", "log(0)", "log(c_1)", "sqrt(c_1)", "c_1 ^ 0.5", "0 ^ -1", "10 ^ 400", "exp(1000)"]
)
def test_a_formula_without_a_real_finite_value_is_an_error(text: str) -> None:
    with pytest.raises(FormulaError):
        value(text)


def test_knows_which_names_it_uses() -> None:
    assert read_formula("max(a, c_1) * a", SCORES).names == {"a", "c_1"}


def _joined(inner: st.SearchStrategy[tuple[str, str]]) -> st.SearchStrategy[tuple[str, str]]:
    def two(parts: tuple[tuple[str, str], str, tuple[str, str], str]) -> tuple[str, str]:
        (ours, python), sign, (ours_too, python_too), space = parts
        power = {"^": "**"}.get(sign, sign)
        return f"{ours}{space}{sign}{space}{ours_too}", f"{python}{power}{python_too}"

    def called(parts: tuple[str, tuple[str, str]]) -> tuple[str, str]:
        name, (ours, python) = parts
        return f"{name}({ours})", f"{name}({python})"

    def many(parts: tuple[str, list[tuple[str, str]]]) -> tuple[str, str]:
        name, inputs = parts
        return f"{name}({','.join(o for o, _ in inputs)})", f"{name}({','.join(p for _, p in inputs)})"

    return (
        st.tuples(inner, st.sampled_from("+-*/^"), inner, st.sampled_from(["", " "])).map(two)
        | st.tuples(st.sampled_from(["abs", "floor", "ceil", "exp", "sqrt", "log", "", "-", "+"]), inner).map(called)
        | st.tuples(st.sampled_from(["min", "max"]), st.lists(inner, min_size=1, max_size=3)).map(many)
    )


_LEAVES = st.sampled_from(list(SCORES)).map(lambda name: (name, name)) | st.floats(0, 50, allow_nan=False).map(
    lambda number: (repr(number), repr(number))
)


@given(st.recursive(_LEAVES, _joined, max_leaves=12))
def test_agrees_with_python_wherever_python_has_a_finite_real_value(both: tuple[str, str]) -> None:
    ours, python = both
    try:
        expected = eval(python, {"__builtins__": {}}, {**PYTHON, **SCORES})
    except (ArithmeticError, ValueError, TypeError):  # a TypeError: of a complex number
        expected = None
    try:
        found = value(ours)
    except FormulaError as error:
        reason = str(error)
    else:
        assert expected == pytest.approx(found)
        return
    if isinstance(expected, float) and math.isfinite(expected):
        assert "too large" in reason or "no real value" in reason  # on the way: infinite, or complex


@given(st.text(max_size=200) | st.text("ab+-*/^(),.019 maxin", max_size=200))
def test_any_text_is_a_formula_or_a_formula_error(text: str) -> None:
    try:
        found = read_formula(text, SCORES).value(SCORES)
    except FormulaError:
        return
    assert math.isfinite(found)
