"""Trajectories to score -> the texts that rules look at. Provenance decides what is whose, never a tag in the text.

segments   policy: think, query | documents | policy: think, answer
turns      think, query                     | think, answer    what the policy wrote; one more than documents
solution   think, query           documents   think, answer    everything, as the published servers saw it
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from searcher.contracts.score import ScoreItem, Verdict
from searcher.qa.answer import Match, extract_answer, match
from searcher.qa.tags import ANSWER_CLOSE, ANSWER_OPEN, DOCUMENTS_CLOSE, DOCUMENTS_OPEN, TAGS

END_MARKERS = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "</s>")
"""Ends of sequence as text. Some decoders keep them, and the published servers strip them before they judge."""

_PUBLISHED_TAG = re.compile(
    rf"{re.escape(DOCUMENTS_OPEN)}(?:\n(?:\(1\))?)?|{re.escape(DOCUMENTS_CLOSE)}(?:\n\n)?|"
    + "|".join(map(re.escape, TAGS))
)


NO_MATCH = Match(em=0.0, cover_em=0.0, f1=0.0)

T = TypeVar("T")


class computed(Generic[T]):  # noqa: N801  (it stands where @cached_property would)
    """`functools.cached_property` without Python 3.11's lock, which costs more than most of what is kept here."""

    def __init__(self, function: Callable[[Any], T]) -> None:
        self.function, self.__doc__ = function, function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> T:
        value = instance.__dict__[self.name] = self.function(instance)
        return value


@dataclass(frozen=True)
class Response:
    item: ScoreItem
    checks: tuple["Check", ...] = ()

    @computed
    def turns(self) -> tuple[str, ...]:
        """What the policy wrote before, between and after documents. The last turn is "" if it wrote nothing more."""
        turns: list[str] = []
        written: list[str] = []
        was_given = False
        for segment in self.item.segments:
            if segment.source == "policy":
                written.append(segment.text)
            elif not was_given:
                turns.append("".join(written))
                written = []
            was_given = segment.source != "policy"
        return (*turns, _without_end_markers("".join(written)))

    @computed
    def own_text(self) -> str:
        """The policy's turns. A blank line stands where documents were, so that no tag can span them."""
        return "\n\n".join(self.turns)

    @computed
    def answer(self) -> str | None:
        """What the policy answered, from its own text; None if it did not, or if it says nothing."""
        return _canonical(extract_answer(self.own_text) or "") or None

    @computed
    def golds(self) -> tuple[str, ...]:
        return tuple(_canonical(gold) for gold in self.item.answers)

    @computed
    def match(self) -> Match:
        """Of the answer with the golds; nothing matches where there is none."""
        return NO_MATCH if self.answer is None else match(self.answer, self.golds)

    @computed
    def errors(self) -> tuple[str, ...]:
        """Names of the format checks that fail, in their order."""
        return tuple(check.name for check in self.checks if not check.passes(self))

    @computed
    def solution(self) -> str:
        return _without_end_markers("".join(segment.text for segment in self.item.segments)).lstrip()

    @computed
    def published_answer(self) -> str | None:
        """As the published servers take it from the solution: unlike `answer`, with both tags in any order, closed or
        not; None where either is missing."""
        solution = self.solution
        opened = solution.rfind(ANSWER_OPEN)
        if opened < 0 or ANSWER_CLOSE not in solution:
            return None
        start = opened + len(ANSWER_OPEN)
        closed = solution.find(ANSWER_CLOSE, start)
        return solution[start : closed if closed >= 0 else None].strip()

    @computed
    def published_tags(self) -> Counter[str]:
        """How often each tag stands in the solution, document tags by what follows them too."""
        return Counter(_PUBLISHED_TAG.findall(self.solution))


@dataclass(frozen=True)
class Check:
    name: str
    """Under this name a failure is counted and reported."""
    passes: Callable[[Response], bool]


@dataclass(frozen=True)
class Group:
    """All responses to one question, and what others think of them where a rule set asks others."""

    responses: tuple[Response, ...]
    verdicts: tuple[Verdict, ...] = ()
    """The judge's, one per response; empty if the rule set has no judge."""
    remote_points: tuple[float, ...] = ()
    """The remote reward's, one per response; empty if the rule set is not remote."""


Points = Callable[[Group], Sequence[float]]
"""A part of a reward: a group -> what this part adds to the total of each response."""


def each(points: Callable[[Response], float]) -> Points:
    """A part that looks at one response at a time."""
    return lambda group: [points(response) for response in group.responses]


def _canonical(text: str) -> str:
    """One spelling per character: an accented letter is the same as a letter with its accent after it. No more is
    folded; a name without its accents is another name, here as in the published metrics."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _without_end_markers(text: str) -> str:
    end = len(text)
    while text.endswith(END_MARKERS, 0, end):
        end -= next(len(marker) for marker in END_MARKERS if text.endswith(marker, 0, end))
    return text[:end]
