"""A response -> its answer; an answer and its golds -> exact match, cover-EM and F1 by R1-Searcher's published rules.

Everything is linear in its input: a policy may answer with a megabyte of anything.
"""

import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from searcher.qa.tags import ANSWER_CLOSE, ANSWER_OPEN

Answer = str | bool
"""Data sets give some answers as booleans; they mean yes and no."""
Golds = Answer | Sequence[Answer]
"""One gold answer or several; of several, the one that fits best counts. Never none."""

_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`", " "))
_NO_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_CLOSED_ANSWERS = frozenset({"yes", "no", "noanswer"})


def extract_answer(text: str) -> str | None:
    """Text after the last `<answer>` and before the next `</answer>`, stripped; None where either is missing."""
    _, opened, rest = text.rpartition(ANSWER_OPEN)
    inside, closed, _ = rest.partition(ANSWER_CLOSE)
    return inside.strip() if opened and closed else None


def normalize_answer(text: str) -> str:
    """Lower case; punctuation becomes a space (`U.S.` -> `u s`); articles go; whitespace collapses. In this order."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


@dataclass(frozen=True, slots=True)
class Match:
    """How well an answer fits the golds, by the three published measures at once."""

    em: float
    cover_em: float
    f1: float


def match(prediction: Answer, golds: Golds) -> Match:
    """Equal to `exact_match`, `cover_exact_match` and `f1`, with everything normalised once."""
    predicted, wanted = _normalized(prediction), tuple(_normalized_golds(golds))
    if predicted and predicted in wanted:
        return Match(1.0, 1.0, 1.0)
    return Match(float(predicted in wanted), _covers(predicted, wanted), _f1(predicted, wanted))


def exact_match(prediction: Answer, golds: Golds) -> float:
    return float(_normalized(prediction) in _normalized_golds(golds))


def cover_exact_match(prediction: Answer, golds: Golds) -> float:
    """1 if every word of a gold answer is among the prediction's words, in any order and anywhere ("York New")."""
    return _covers(_normalized(prediction), _normalized_golds(golds))


def _covers(predicted: str, golds: Iterable[str]) -> float:
    # Splitting "" at " " gives [""], so a gold of articles only is covered by an empty prediction and by no other.
    words = set(predicted.split(" "))
    return float(any(words.issuperset(gold.split(" ")) for gold in golds))


def cover_exact_match_strict(prediction: Answer, golds: Golds) -> float:
    """1 if a gold answer's words stand in the prediction side by side and in order ("York New" is not "New York")."""
    # Padded by spaces, whole words match only, and nothing (a gold of articles only) matches only nothing.
    predicted = f" {_normalized(prediction)} "
    return float(any(f" {gold} " in predicted for gold in _normalized_golds(golds)))


def search_r1_exact_match(prediction: Answer, golds: Golds) -> float:
    """Search-R1's: punctuation (ASCII only) is deleted, not turned into a space, so `U.S.` is `us`."""
    several = [golds] if isinstance(golds, str | bool) else golds
    predicted = _search_r1_normalized(str(prediction))
    return float(any(predicted == _search_r1_normalized(str(gold)) for gold in several))


def f1(prediction: Answer, golds: Golds) -> float:
    """F1 over the words with their counts; yes, no and noanswer are right or wrong as a whole."""
    return _f1(_normalized(prediction), tuple(_normalized_golds(golds)))


def _f1(predicted: str, golds: Sequence[str]) -> float:
    words = predicted.split()
    if words and predicted in golds:
        return 1.0
    counts = Counter(words)

    def against(gold: str) -> float:
        if not _CLOSED_ANSWERS.isdisjoint((predicted, gold)):
            return 0.0
        gold_words = gold.split()
        num_same = sum(min(count, counts[word]) for word, count in Counter(gold_words).items())
        if num_same == 0:
            return 0.0
        precision, recall = num_same / len(words), num_same / len(gold_words)
        return 2 * precision * recall / (precision + recall)

    return max(against(gold) for gold in golds)


def _normalized(answer: Answer) -> str:
    text = str(answer)
    return _remembered(text) if len(text) <= _SHORT else _with_booleans(text)


def _with_booleans(text: str) -> str:
    return {"True": "yes", "False": "no"}.get(text) or normalize_answer(text)


_SHORT = 256
# Every metric asks again, and the samples of a group have the same golds and often the same answer.
_remembered = lru_cache(maxsize=16_384)(_with_booleans)


def _search_r1_normalized(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_ASCII_PUNCTUATION)).split())


def _normalized_golds(golds: Golds) -> Iterator[str]:
    for gold in (golds,) if isinstance(golds, (str, bool)) else golds:
        yield _normalized(gold)
