"""What can be wrong with a grader, or with the wish to run it."""

from typing import Literal


class InvalidGraderError(ValueError):
    """A grader that may not be. `param` is the path of what is wrong, `message` a sentence without the path."""

    def __init__(self, param: str, message: str, kind: Literal["missing", "unknown", "invalid"] = "invalid") -> None:
        super().__init__(f"{param}: {message}")
        self.param = param
        self.message = message
        self.kind = kind


class CannotGradeError(Exception):
    """A valid grader that cannot be run: something is missing here, or the texts are too long."""

    def __init__(self, param: str, message: str, kind: Literal["unsupported", "too_long"]) -> None:
        super().__init__(f"{param}: {message}")
        self.param = param
        self.message = message
        self.kind = kind


class FormulaError(ValueError):
    """A formula that cannot be read, or that has no value for these numbers."""


class TemplateError(ValueError):
    """A template that cannot be read."""


class UnfilledError(Exception):
    """A template that asks for what the item or the sample does not hold."""

    def __init__(self, message: str, kind: Literal["invalid_variable", "sample_parse"]) -> None:
        super().__init__(message)
        self.kind = kind
