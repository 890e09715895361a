"""Metrics against numbers worked out by hand."""

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier_graders.similarity import METRICS, words

CAT = "the cat sat on the mat"
REF = "the cat is on the mat"
# CAT and REF share words the cat on the mat (5 of 6 and 6), pairs "the cat", "on the", "the mat" (3 of 5 and 5),
# the triple "on the mat" (1 of 4 and 4), and no four words in a row (0 of 3 and 3).


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("rouge_1", 5 / 6),
        ("rouge_2", 3 / 5),
        ("rouge_3", 1 / 4),
        ("rouge_4", 0),
        ("rouge_5", 0),
        ("rouge_l", 5 / 6),
        ("gleu", (5 + 3 + 1 + 0) / (6 + 5 + 4 + 3)),
        ("bleu", (5 / 6 * 3 / 5 * 1 / 4 * (0.1 / 3)) ** 0.25),
        # 22 and 21 characters with 20 of "the cat " + "s" + " on the mat" in common
        ("fuzzy_match", 2 * 20 / (22 + 21)),
        # precision = recall = 5/6, so their mean is 5/6; two chunks of five matches
        ("meteor", 5 / 6 * (1 - 0.5 * (2 / 5) ** 3)),
    ],
)
def test_a_sentence_by_hand(metric: str, expected: float) -> None:
    assert METRICS[metric](CAT, REF) == pytest.approx(expected)


def test_rouge_is_f1_of_clipped_counts_in_lower_case_without_signs() -> None:
    assert METRICS["rouge_1"]("The, the! the", "the end.") == pytest.approx(2 * 1 / (3 + 2))
    assert METRICS["rouge_2"]("a b c", "b c d e") == pytest.approx(2 * 1 / (2 + 3))


def test_rouge_l_counts_words_in_order_with_gaps() -> None:
    assert METRICS["rouge_l"]("police kill the gunman", "police killed the gunman") == pytest.approx(3 / 4)
    assert METRICS["rouge_l"]("the gunman kill police", "police killed the gunman") == pytest.approx(2 / 4)


def test_bleu_punishes_what_is_too_short() -> None:
    assert METRICS["bleu"]("a b c d", "a b c d e f") == pytest.approx(math.exp(1 - 6 / 4))
    assert METRICS["bleu"]("a b", "a b") == pytest.approx(1)


def test_the_papers_examples_as_nltk_documents_them() -> None:
    first = "It is a guide to action which ensures that the military always obeys the commands of the party"
    reference = "It is a guide to action that ensures that the military will forever heed Party commands"
    assert METRICS["meteor"](first, reference) == pytest.approx(0.6944, abs=5e-5)
    assert METRICS["gleu"](first, reference) == pytest.approx(0.4393, abs=5e-4)
    assert METRICS["bleu"](first, reference) == pytest.approx(0.4118, abs=5e-5)


def test_meteor_knows_stems_and_no_synonyms() -> None:
    assert METRICS["meteor"]("dogs", "dog") == pytest.approx(0.5)
    assert METRICS["meteor"]("car", "automobile") == 0


def test_words_of_scripts_without_spaces_are_characters() -> None:
    assert words("東京 is big, 3_d!") == ["東", "京", "is", "big", ",", "3_d", "!"]


@pytest.mark.parametrize("metric", METRICS)
def test_nothing_to_compare_scores_nothing(metric: str) -> None:
    assert METRICS[metric]("", "word") == 0
    assert METRICS[metric]("word", "") == 0
    assert METRICS[metric]("", "") == (1 if metric == "fuzzy_match" else 0)


@given(st.sampled_from(sorted(METRICS)), st.text(max_size=60), st.text(max_size=60))
def test_scores_are_from_0_to_1(metric: str, one: str, other: str) -> None:
    assert 0 <= METRICS[metric](one, other) <= 1


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("text", ["y" * 65536, "ab " * 21845, "running " * 8192, "." * 65536], ids=lambda t: t[:5])
def test_the_longest_text_is_scored_in_bounded_time(metric: str, text: str) -> None:
    began = time.process_time()
    METRICS[metric](text, text[1:])
    assert time.process_time() - began < 5
