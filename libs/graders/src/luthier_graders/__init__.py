"""Graders as OpenAI's API describes them: what a grader may say, and what a sample scores with it.

Pure: nothing here reads a file, asks a model or runs code of others.
"""

from luthier_graders.engine import Problem, Result, Sample, grade
from luthier_graders.errors import CannotGradeError, InvalidGraderError
from luthier_graders.reading import read_grader
from luthier_graders.shapes import (
    Grader,
    LabelModelGrader,
    MultiGrader,
    PythonGrader,
    ScoreModelGrader,
    SingleGrader,
    StringCheckGrader,
    TextSimilarityGrader,
)

__all__ = [
    "CannotGradeError",
    "Grader",
    "InvalidGraderError",
    "LabelModelGrader",
    "MultiGrader",
    "Problem",
    "PythonGrader",
    "Result",
    "Sample",
    "ScoreModelGrader",
    "SingleGrader",
    "StringCheckGrader",
    "TextSimilarityGrader",
    "grade",
    "read_grader",
]
