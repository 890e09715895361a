"""How alike two texts are, from 0 to 1. `given` is what is graded, `reference` what it is held against.

OpenAI names its metrics and not their formulas; these are ours:

- fuzzy_match: characters, normalised indel similarity `2 * lcs / (len + len)`; two empty texts are alike
  (`rapidfuzz.fuzz.ratio` / 100).
- bleu: words up to 4-grams with equal weights (fewer when `given` has fewer words), brevity penalty, smoothing 1 of
  Chen and Cherry 2014 (Papineni et al. 2002; `nltk`).
- gleu: matching 1- to 4-grams, the smaller of precision and recall (Wu et al. 2016; `nltk`).
- meteor: lower case, exact matches, then Porter stems; alpha 0.9, beta 3, gamma 0.5; no synonyms
  (Lavie and Agarwal 2007; `nltk`).
- rouge_1 to rouge_5: lower case, F1 of the n-grams that both have (Lin 2004).
- rouge_l: lower case, F1 of the longest common subsequence of words (Lin 2004).

Words are runs of letters, digits and `_`; each Chinese or Japanese character is a word; for BLEU, GLEU and METEOR each
other sign is a word too, ROUGE drops them. A side without words, or for ROUGE without n-grams, scores 0.

METEOR's synonyms come from WordNet, a corpus that would have to be downloaded; the source here has none, so scores are
lower than METEOR's own where only synonyms match.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

from rapidfuzz import fuzz
from rapidfuzz.distance import LCSseq

MAX_STEMMED_CHARS = 64
_EACH_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_EACH_ALONE}]|[^\W{_EACH_ALONE}]+|[^\w\s]")


class _Stemmer:
    """Porter's stemmer for what can be a word of a language."""

    def __init__(self, stem: Callable[[str], str]) -> None:
        self._stem = lru_cache(maxsize=8192)(stem)

    def stem(self, token: str) -> str:
        return str(self._stem(token)) if len(token) <= MAX_STEMMED_CHARS else token


class _NoSynonyms:
    """Stands where METEOR looks for WordNet."""

    def synsets(self, _word: str) -> list[object]:
        return []


class _Nltk:
    """What we use of nltk. It is loaded when first wanted: it takes half a second and brings numpy along."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer  # type: ignore[import-untyped]  # noqa: PLC0415
        from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu  # type: ignore[import-untyped]  # noqa: PLC0415
        from nltk.translate.gleu_score import sentence_gleu  # type: ignore[import-untyped]  # noqa: PLC0415
        from nltk.translate.meteor_score import single_meteor_score  # type: ignore[import-untyped]  # noqa: PLC0415

        smooth, stemmer, no_synonyms = SmoothingFunction().method1, _Stemmer(PorterStemmer().stem), _NoSynonyms()
        self.bleu = partial(sentence_bleu, smoothing_function=smooth, auto_reweigh=True)
        self.gleu = sentence_gleu
        self.meteor = partial(single_meteor_score, stemmer=stemmer, wordnet=no_synonyms)


_nltk = lru_cache(maxsize=1)(_Nltk)


def words(text: str) -> list[str]:
    """The words and signs of a text."""
    return _WORD.findall(text)


def fuzzy_match(given: str, reference: str) -> float:
    return fuzz.ratio(given, reference) / 100


def bleu(given: str, reference: str) -> float:
    hypothesis, against = words(given), words(reference)
    if not hypothesis or not against:
        return 0.0
    return min(float(_nltk().bleu([against], hypothesis)), 1.0)


def gleu(given: str, reference: str) -> float:
    return float(_nltk().gleu([words(reference)], words(given)))


def meteor(given: str, reference: str) -> float:
    return float(_nltk().meteor(words(reference), words(given)))


def rouge_n(given: str, reference: str, n: int) -> float:
    ours, theirs = _ngrams(given, n), _ngrams(reference, n)
    return _f1((ours & theirs).total(), ours.total(), theirs.total())


def rouge_l(given: str, reference: str) -> float:
    ours, theirs = _letters(given), _letters(reference)
    numbers: dict[str, int] = {}
    first, second = ([numbers.setdefault(word, len(numbers)) for word in side] for side in (ours, theirs))
    return _f1(LCSseq.similarity(first, second), len(ours), len(theirs))


METRICS: dict[str, Callable[[str, str], float]] = {
    "fuzzy_match": fuzzy_match,
    "bleu": bleu,
    "gleu": gleu,
    "meteor": meteor,
    **{f"rouge_{n}": partial(rouge_n, n=n) for n in range(1, 6)},
    "rouge_l": rouge_l,
}
"""The metrics that need no model."""


def _letters(text: str) -> Sequence[str]:
    return [word for word in words(text.lower()) if word[0].isalnum() or word[0] == "_"]


def _ngrams(text: str, n: int) -> Counter[tuple[str, ...]]:
    tokens = _letters(text)
    return Counter(zip(*(tokens[start:] for start in range(n)), strict=False))


def _f1(common: int, ours: int, theirs: int) -> float:
    """Of precision and recall: 2 / (1 / p + 1 / r)."""
    return 2 * common / (ours + theirs) if common else 0.0
