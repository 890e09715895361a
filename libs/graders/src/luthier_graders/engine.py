"""A sample's score by a grader that needs nothing but the texts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from luthier_graders.errors import CannotGradeError, FormulaError, UnfilledError
from luthier_graders.formula import read_formula
from luthier_graders.shapes import Grader, MultiGrader, SingleGrader, StringCheckGrader, TextSimilarityGrader
from luthier_graders.similarity import METRICS
from luthier_graders.template import Values, fill

MAX_TEXT_BYTES = 64 * 1024
MAX_RUN_BYTES = 4 * MAX_TEXT_BYTES
_LACKING = {
    "python": "running python graders needs a sandbox, which this server does not have",
    "score_model": "score_model graders need a model that grades, which this server does not have",
    "label_model": "label_model graders need a model that grades, which this server does not have",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """What a model answered."""

    output_text: str


@dataclass(frozen=True, slots=True)
class Problem:
    """Why there is no score: a template's value is not there, the answer is not JSON, or the formula has no value."""

    kind: Literal["invalid_variable", "sample_parse", "formula"]
    param: str
    message: str


@dataclass(frozen=True, slots=True)
class Result:
    """The reward, or None and the problems; `scores` are those of a multi's graders, None where one has none."""

    reward: float | None
    scores: dict[str, float | None] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


def grade(grader: Grader, sample: Sample, item: Mapping[str, Any], at: str = "grader") -> Result:
    """What the sample scores. CannotGradeError when the grader needs what is not here, or the texts are too long."""
    check_runnable(grader, at)
    run = _Run(Values(sample.output_text, item))
    if not isinstance(grader, MultiGrader):
        score = run.score(grader, at)
        return Result(score, problems=tuple(run.problems))
    scores = {name: run.score(each, f"{at}.graders.{name}") for name, each in grader.graders.items()}
    return Result(run.combine(grader, scores, at), scores, tuple(run.problems))


def check_runnable(grader: Grader, at: str = "grader") -> None:
    """CannotGradeError, naming what is missing, for a grader that cannot be run here."""
    if isinstance(grader, MultiGrader):
        for name, each in grader.graders.items():
            check_runnable(each, f"{at}.graders.{name}")
    elif grader.type in _LACKING:
        raise CannotGradeError(f"{at}.type", f"{_LACKING[grader.type]}.", "unsupported")
    elif isinstance(grader, TextSimilarityGrader) and grader.evaluation_metric not in METRICS:
        message = "cosine needs an embedding model, which this server does not have."
        raise CannotGradeError(f"{at}.evaluation_metric", message, "unsupported")


class _Run:
    """One grading: what templates find, what went wrong, and how much text was read so far."""

    def __init__(self, values: Values) -> None:
        self._values = values
        self._num_bytes = 0
        self.problems: list[Problem] = []

    def score(self, grader: SingleGrader, at: str) -> float | None:
        """The score, or None with a problem noted."""
        assert isinstance(grader, StringCheckGrader | TextSimilarityGrader)
        given = self._text(grader.input, f"{at}.input")
        reference = self._text(grader.reference, f"{at}.reference")
        if given is None or reference is None:
            return None
        if isinstance(grader, TextSimilarityGrader):
            return METRICS[grader.evaluation_metric](given, reference)
        return float(_checks(grader.operation, given, reference))

    def combine(self, grader: MultiGrader, scores: Mapping[str, float | None], at: str) -> float | None:
        """The formula's value; None when a score that it uses is missing, or with a problem noted."""
        formula = read_formula(grader.calculate_output, grader.graders)
        known = {name: score for name, score in scores.items() if score is not None}
        if not formula.names <= known.keys():
            return None
        try:
            return formula.value(known)
        except FormulaError as error:
            self.problems.append(Problem("formula", f"{at}.calculate_output", str(error)))
            return None

    def _text(self, template: str, param: str) -> str | None:
        try:
            text = fill(template, self._values, MAX_TEXT_BYTES)
        except UnfilledError as error:
            self.problems.append(Problem(error.kind, param, str(error)))
            return None
        num_bytes = MAX_TEXT_BYTES + 1 if text is None else len(text.encode("utf-8", "surrogatepass"))
        self._num_bytes += num_bytes
        if num_bytes > MAX_TEXT_BYTES:
            message = f"the text is longer than {MAX_TEXT_BYTES} bytes once its template is filled."
            raise CannotGradeError(param, message, "too_long")
        if self._num_bytes > MAX_RUN_BYTES:
            message = f"the texts of all graders together are longer than {MAX_RUN_BYTES} bytes."
            raise CannotGradeError(param, message, "too_long")
        return text


def _checks(operation: Literal["eq", "ne", "like", "ilike"], given: str, reference: str) -> bool:
    """Whether the given text equals, differs from, or holds the reference; `ilike` whatever the case."""
    if operation == "eq":
        return given == reference
    if operation == "ne":
        return given != reference
    if operation == "like":
        return reference in given
    return reference.casefold() in given.casefold()
