"""What a grader may say: one shape for each type, checked in full."""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from luthier_graders.formula import FUNCTIONS, NAME, read_formula
from luthier_graders.template import read_template

MAX_GRADERS = 32
MAX_TEMPLATE_CHARS = 65_536
MAX_SOURCE_BYTES = 256_000
MAX_MESSAGES = 64
MAX_PARTS = 64
MAX_LABELS = 256
_GRADE = re.compile(r"^def[ \t]+grade[ \t]*\(", re.MULTILINE)


def _template(text: str) -> str:
    read_template(text)
    return text


Name = Annotated[str, Field(min_length=1, max_length=256)]
Template = Annotated[str, Field(max_length=MAX_TEMPLATE_CHARS), AfterValidator(_template)]


class Shape(BaseModel):
    """No unknown fields, no guessing of types, and no error that repeats what was sent."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True, allow_inf_nan=False)


class StringCheckGrader(Shape):
    """1 or 0: whether two texts are equal, differ, or one holds the other."""

    type: Literal["string_check"]
    name: Name
    input: Template
    reference: Template
    operation: Literal["eq", "ne", "like", "ilike"]


Metric = Literal[
    "cosine",
    "fuzzy_match",
    "bleu",
    "gleu",
    "meteor",
    "rouge_1",
    "rouge_2",
    "rouge_3",
    "rouge_4",
    "rouge_5",
    "rouge_l",
]


class TextSimilarityGrader(Shape):
    """From 0 to 1: how alike two texts are."""

    type: Literal["text_similarity"]
    name: Name
    input: Template
    reference: Template
    evaluation_metric: Metric


class PythonGrader(Shape):
    """A score from a function `grade(sample, item)`."""

    type: Literal["python"]
    name: Name
    source: str
    image_tag: Annotated[str, Field(min_length=1, max_length=64)] | None = None

    @field_validator("source")
    @classmethod
    def _source(cls, source: str) -> str:
        if len(source.encode("utf-8", "surrogatepass")) >= MAX_SOURCE_BYTES:
            raise ValueError(f"must be smaller than {MAX_SOURCE_BYTES} bytes")
        if not _GRADE.search(source):
            raise ValueError("must define a function grade(sample, item)")
        return source


class GraderInputText(Shape):
    type: Literal["input_text"]
    text: Template


class GraderOutputText(Shape):
    type: Literal["output_text"]
    text: Template


class GraderInputImage(Shape):
    type: Literal["input_image"]
    image_url: Template
    detail: Literal["auto", "low", "high"] | None = None


class GraderAudio(Shape):
    data: str
    format: Literal["mp3", "wav"]


class GraderInputAudio(Shape):
    type: Literal["input_audio"]
    input_audio: GraderAudio


Part = Annotated[GraderInputText | GraderOutputText | GraderInputImage | GraderInputAudio, Field(discriminator="type")]


class GraderMessage(Shape):
    """A message to the model that grades."""

    role: Literal["user", "assistant", "system", "developer"]
    content: Template | Part | Annotated[list[Template | Part], Field(min_length=1, max_length=MAX_PARTS)]
    type: Literal["message"] | None = None


Messages = Annotated[list[GraderMessage], Field(min_length=1, max_length=MAX_MESSAGES)]


class GraderSamplingParams(Shape):
    """How the model that grades is sampled. `max_completions_tokens` is spelled so on the wire."""

    max_completions_tokens: Annotated[int, Field(ge=1, le=2**53)] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    seed: Annotated[int, Field(ge=-(2**53), le=2**53)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None


class ScoreModelGrader(Shape):
    """A score from a model, within a range; null means 0 to 1."""

    type: Literal["score_model"]
    name: Name
    model: Name
    input: Messages
    range: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    sampling_params: GraderSamplingParams | None = None

    @field_validator("range")
    @classmethod
    def _range(cls, ends: list[float] | None) -> list[float] | None:
        if ends is not None and ends[0] >= ends[1]:
            raise ValueError("must be two numbers, the smaller one first")
        return ends


class LabelModelGrader(Shape):
    """1 or 0: whether the label that a model gives is one of the passing ones."""

    type: Literal["label_model"]
    name: Name
    model: Name
    input: Messages
    labels: Annotated[list[Name], Field(min_length=1, max_length=MAX_LABELS)]
    passing_labels: Annotated[list[Name], Field(min_length=1, max_length=MAX_LABELS)]

    @field_validator("labels", "passing_labels")
    @classmethod
    def _once(cls, labels: list[str]) -> list[str]:
        if len(set(labels)) < len(labels):
            raise ValueError("must name each label once")
        return labels

    @field_validator("passing_labels")
    @classmethod
    def _known(cls, passing: list[str], info: ValidationInfo) -> list[str]:
        if not set(passing) <= set(info.data.get("labels", passing)):
            raise ValueError("must be some of the labels")
        return passing


SingleGrader = Annotated[
    StringCheckGrader | TextSimilarityGrader | PythonGrader | ScoreModelGrader | LabelModelGrader,
    Field(discriminator="type"),
]


def _by_name(graders: Any) -> Any:
    """Graders by name; a list of named ones, or the single one that OpenAI's own types know, become that."""
    if isinstance(graders, dict) and isinstance(graders.get("type"), str):
        graders = [graders]
    if not isinstance(graders, list):
        return graders
    named: dict[str, Any] = {}
    for number, grader in enumerate(graders):
        name = grader.get("name") if isinstance(grader, dict) else None
        if not isinstance(name, str):
            raise ValueError(f"must have a name in each item of the list; item {number} has none")
        if name in named:
            raise ValueError("must have different names")
        named[name] = grader
    return named


class MultiGrader(Shape):
    """A formula over the scores of other graders."""

    type: Literal["multi"]
    name: Name
    graders: Annotated[dict[str, SingleGrader], BeforeValidator(_by_name)]
    calculate_output: str

    @field_validator("graders")
    @classmethod
    def _speakable(cls, graders: dict[str, Any]) -> dict[str, Any]:
        if not 0 < len(graders) <= MAX_GRADERS:
            raise ValueError(f"must hold 1 to {MAX_GRADERS} graders")
        for name in graders:
            if not NAME.fullmatch(name) or name in FUNCTIONS:
                raise ValueError(
                    "must have names that a formula can use: a letter or _, then letters, digits and _, "
                    f"at most 64, and not the name of a function; {name[:64]!r} is none"
                )
        return graders

    @field_validator("calculate_output")
    @classmethod
    def _formula(cls, text: str, info: ValidationInfo) -> str:
        if "graders" in info.data:
            read_formula(text, info.data["graders"])
        return text


Grader = Annotated[
    StringCheckGrader | TextSimilarityGrader | PythonGrader | ScoreModelGrader | LabelModelGrader | MultiGrader,
    Field(discriminator="type"),
]
