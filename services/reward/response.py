"""One trajectory to score -> the texts that rules look at. Provenance decides what is whose, never a tag in the text.

segments   policy: think, query | documents | policy: think, answer
turns      think, query                     | think, answer    what the policy wrote; one more than documents
solution   think, query           documents   think, answer    everything, as the published servers saw it
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from searcher.contracts.score import ScoreItem
from searcher.qa.answer import extract_answer

END_MARKERS = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "</s>")
"""Ends of sequence as text. Some decoders keep them, and the published servers strip them before they judge."""


@dataclass(frozen=True)
class Response:
    item: ScoreItem

    @cached_property
    def turns(self) -> tuple[str, ...]:
        """What the policy wrote before, between and after documents. The last turn is "" if it wrote nothing more."""
        turns = [""]
        for source, segments in groupby(self.item.segments, key=lambda segment: segment.source):
            if source == "policy":
                turns[-1] = "".join(segment.text for segment in segments)
            else:
                turns.append("")
        turns[-1] = _without_end_markers(turns[-1])
        return tuple(turns)

    @cached_property
    def own_text(self) -> str:
        """The policy's turns. A blank line stands where documents were, so that no tag can span them."""
        return "\n\n".join(self.turns)

    @cached_property
    def answer(self) -> str | None:
        """What the policy answered, from its own text; None if it did not, or if it says nothing."""
        return extract_answer(self.own_text) or None

    @cached_property
    def solution(self) -> str:
        return _without_end_markers("".join(segment.text for segment in self.item.segments)).lstrip()


Points = Callable[[Response, frozenset[str]], float]
"""A part of a reward: (response, names of the format checks it failed) -> what this part adds to the total."""


def _without_end_markers(text: str) -> str:
    end = len(text)
    while marker := next((marker for marker in END_MARKERS if text.endswith(marker, 0, end)), None):
        end -= len(marker)
    return text[:end]
