"""The ids of one trajectory as they come in: the policy's context on one side, the trainer's segments on the other.

prompt P | think+query A0 | docs D0 | think+answer A1
           wrote(A0)        was_given(D0)  wrote(A1)
"""

from collections.abc import Sequence

from searcher.clients.engine import Sampled
from searcher.contracts.trajectory import Segment, Source
from searcher.contracts.weights import step_of
from services.rollout.policy import Tokens


class Ledger:
    def __init__(self, prompt_ids: Sequence[int]) -> None:
        self.context_ids = list(prompt_ids)
        """Prompt and response so far: what the engine continues."""
        self.segments: list[Segment] = []

    def wrote(self, text: str, turn: Sampled) -> None:
        """The policy sampled these ids: they stay exactly as sampled, and carry gradient."""
        self._append(
            Segment(
                source=Source.POLICY,
                text=text,
                token_ids=turn.token_ids,
                logprobs=turn.logprobs,
                weight_steps=tuple(step_of(version) for version in turn.versions),
            )
        )

    def was_given(self, documents: Tokens) -> None:
        """The system inserted these ids: the policy did not choose them, so they carry none."""
        self._append(
            Segment(
                source=Source.DOCUMENTS,
                text=documents.text,
                token_ids=tuple(documents.ids),
                logprobs=(0.0,) * len(documents.ids),
                weight_steps=(-1,) * len(documents.ids),
            )
        )

    def _append(self, segment: Segment) -> None:
        self.segments.append(segment)
        self.context_ids.extend(segment.token_ids)
