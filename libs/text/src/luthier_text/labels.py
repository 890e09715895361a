"""What of a row's tokens is learnt; pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from luthier_text.encoder import Encoding

IGNORED_LABEL = -100


@dataclass(frozen=True)
class TrainRow:
    """Ids and labels of a row; a label is -100 where nothing is learnt. `warnings` are stable codes."""

    input_ids: list[int]
    labels: list[int]
    num_trained: int
    warnings: tuple[str, ...] = ()


def label_tokens(encoding: Encoding, spans: Sequence[tuple[int, int]]) -> tuple[list[int], bool]:
    """Labels of the tokens that touch a span, and whether one holds both a span's start and what comes before it."""
    labels = [IGNORED_LABEL] * len(encoding.ids)
    is_border_inside = False
    number = 0
    for place, (start, end) in enumerate(encoding.offsets):
        while number < len(spans) and spans[number][1] <= start:
            number += 1
        if number == len(spans):
            break
        left = spans[number][0]
        if end > left or start == end == left:
            labels[place] = encoding.ids[place]
            is_border_inside = is_border_inside or start < left
    return labels, is_border_inside


def first_difference(expected: Sequence[int], ours: Sequence[int]) -> str:
    """Where two lists of ids part, for a report."""
    for place, (left, right) in enumerate(zip(expected, ours, strict=False)):
        if left != right:
            return f"differ at {place}: {left} became {right}"
    return f"differ in number: {len(expected)} became {len(ours)}"
