"""At which rollout a question was first answered right -> its label; labelled questions -> a mixture by ratio."""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from searcher.contracts.errors import InvalidInput
from searcher.contracts.question import Question


class Difficulty(StrEnum):
    EASY = "easy"
    """Right before the tenth rollout."""
    MEDIUM = "medium"
    """Right at the tenth to the twentieth."""
    DIFFICULT = "difficult"
    """Right later, or never in as many as were asked."""


EASY_BELOW, MEDIUM_UP_TO = 10, 20
"""The paper's borders, in rollouts until the first right answer."""

Ratio = Mapping[Difficulty, float]


@dataclass(frozen=True)
class Labelled:
    question: Question
    num_asked: int
    first_correct: int | None
    """Counts from 1; None: never in `num_asked` rollouts."""

    @property
    def difficulty(self) -> Difficulty:
        return difficulty_of(self.first_correct)


def difficulty_of(first_correct: int | None) -> Difficulty:
    if first_correct is None or first_correct > MEDIUM_UP_TO:
        return Difficulty.DIFFICULT
    return Difficulty.EASY if first_correct < EASY_BELOW else Difficulty.MEDIUM


def parse_ratio(text: str) -> Ratio:
    """`medium=1,difficult=2` -> shares that add up to 1; a label that is not named has none. Raises InvalidInput."""
    weights: dict[Difficulty, float] = {}
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        try:
            label, weight = Difficulty(name), float(number)
        except ValueError:
            raise InvalidInput(
                f"--mix: {part.strip()!r} is not LABEL=NUMBER; write e.g. easy=0,medium=1,difficult=1"
            ) from None
        if label in weights or not 0 <= weight < math.inf:
            raise InvalidInput(f"--mix: {part.strip()!r}: each label once, with a number of 0 or more")
        weights[label] = weight
    total = sum(weights.values())
    if total <= 0:
        raise InvalidInput(f"--mix: {text!r} leaves nothing to select; give one label more than 0")
    return {label: weights.get(label, 0.0) / total for label in Difficulty}


def mix(labelled: Sequence[Labelled], ratio: Ratio | None, *, size: int | None, seed: int) -> list[Labelled]:
    """A part of them in the given ratio, in their order, the same for the same seed; without a ratio, of all labels.

    Without a size, as many as there are for the ratio. Raises InvalidInput if there are too few.
    """
    drawn = sorted(labelled, key=lambda each: _lot(seed, each.question.id))
    if ratio is None:
        if size is not None and size > len(drawn):
            raise InvalidInput(f"--size: {size} questions are wanted, there are {len(drawn)}")
        chosen = drawn[:size]
    else:
        counts = _counts(ratio, Counter(each.difficulty for each in labelled), size)
        chosen = [each for label in Difficulty for each in [e for e in drawn if e.difficulty is label][: counts[label]]]
    ids = {each.question.id for each in chosen}
    return [each for each in labelled if each.question.id in ids]


def _counts(ratio: Ratio, there: Mapping[Difficulty, int], size: int | None) -> dict[Difficulty, int]:
    have = ", ".join(f"{there.get(label, 0)} {label}" for label in Difficulty)
    if size is None:
        size = _largest(ratio, there)
        if size == 0:
            raise InvalidInput(f"--mix: there are {have}; a label that is in the mix has none")
    counts = shares(ratio, size)
    if any(count > there.get(label, 0) for label, count in counts.items()):
        wanted = ", ".join(f"{count} {label}" for label, count in counts.items())
        raise InvalidInput(f"--size: {size} in this ratio are {wanted}; there are {have}")
    return counts


def shares(ratio: Ratio, size: int) -> dict[Difficulty, int]:
    """Whole numbers that add up to `size`; what rounding leaves goes to the largest remainders."""
    exact = {label: ratio[label] * size for label in Difficulty}
    whole = {label: math.floor(value + 1e-9) for label, value in exact.items()}
    by_remainder = sorted(Difficulty, key=lambda label: whole[label] - exact[label])
    for label in by_remainder[: size - sum(whole.values())]:
        whole[label] += 1
    return whole


def _largest(ratio: Ratio, there: Mapping[Difficulty, int]) -> int:
    """The most questions that keep the ratio, of those there are."""
    size = min(math.floor(there.get(label, 0) / share + 1e-9) for label, share in ratio.items() if share > 0)
    while any(count > there.get(label, 0) for label, count in shares(ratio, size).items()):
        size -= 1  # rounding asks for one more than there is
    return size


def _lot(seed: int, question_id: str) -> bytes:
    return hashlib.sha256(f"{seed}/{question_id}".encode()).digest()
