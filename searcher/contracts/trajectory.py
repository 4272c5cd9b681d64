"""What the policy wrote and what it was given, token by token: the ledger.

Token ids are decided once, by whoever produced them, and never re-tokenised:

    prompt P | think+query A0 | docs D0 (retriever) | think+answer A1
    mask       T T T T T T      F F F F F F            T T T T

The mask follows provenance, never text: a policy that writes fake document tags is still trained on them.
"""

from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from searcher.contracts.base import Contract
from searcher.contracts.question import Question
from searcher.contracts.score import Score
from searcher.contracts.search import Passage


class Source(StrEnum):
    POLICY = "policy"
    """Sampled by the engine: trained on."""
    DOCUMENTS = "documents"
    """Inserted by the system (documents and the separators around them): carries no gradient."""


class StopReason(StrEnum):
    ANSWERED = "answered"
    """The policy ended its text (end-of-sequence, or `</answer>` where the plan stops there)."""
    OUT_OF_TOKENS = "out_of_tokens"
    """A turn reached its token limit, or the next one would not fit the context."""
    OUT_OF_SEARCHES = "out_of_searches"
    """Asked for one search more than the plan allows."""
    BAD_QUERY = "bad_query"
    """Closed a query tag that was never opened, or that holds nothing to search for."""


class Segment(Contract):
    """A contiguous run of tokens from one source.

    `logprobs` are of the sampled token under the policy that sampled it (natural log), 0.0 for documents;
    `weight_steps` is the optimiser step of the weights that sampled it, -1 for documents and unpublished weights.
    """

    source: Source
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    weight_steps: tuple[int, ...]

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        lengths = (len(self.token_ids), len(self.logprobs), len(self.weight_steps))
        if len(set(lengths)) != 1:
            raise ValueError(f"token_ids, logprobs and weight_steps differ in length: {lengths}")
        return self


class Search(Contract):
    """One query and what came back, for people and reports; the policy saw the segment's text."""

    query: str
    passages: tuple[Passage, ...]


class Trajectory(Contract):
    """One sample of one question: the prompt, then segments alternating between policy and documents."""

    id: str
    question: Question
    prompt_text: str
    prompt_ids: tuple[int, ...] = Field(min_length=1)
    segments: tuple[Segment, ...]
    searches: tuple[Search, ...]
    stop_reason: StopReason
    score: Score | None = None

    @property
    def token_ids(self) -> list[int]:
        """The response's ids, T long (without the prompt)."""
        return [token for segment in self.segments for token in segment.token_ids]

    @property
    def policy_mask(self) -> list[bool]:
        """True exactly on ids that the engine sampled."""
        return [segment.source is Source.POLICY for segment in self.segments for _ in segment.token_ids]

    @property
    def logprobs(self) -> list[float]:
        return [logprob for segment in self.segments for logprob in segment.logprobs]

    @property
    def weight_steps(self) -> list[int]:
        return [step for segment in self.segments for step in segment.weight_steps]

    @property
    def text(self) -> str:
        """The whole response as text: what the policy wrote and what it was given."""
        return "".join(segment.text for segment in self.segments)

    @property
    def num_policy_tokens(self) -> int:
        return sum(len(segment.token_ids) for segment in self.segments if segment.source is Source.POLICY)


class RolloutResponse(Contract):
    """`POST /v1/rollouts`: num_samples trajectories per question, grouped, in the order asked."""

    groups: tuple[tuple[Trajectory, ...], ...]
    weights: str
    """The one weight version every token was sampled under."""


class AskEventKind(StrEnum):
    THINK = "think"
    """The policy wrote a turn."""
    SEARCH = "search"
    """The system searched; `search` holds query and passages."""
    DONE = "done"
    """The last event; `trajectory` holds everything, `answer` the extracted answer (None if there is none)."""
    ERROR = "error"


class AskEvent(Contract):
    """One server-sent event of `POST /v1/ask`; `event:` is the kind, `data:` this object as JSON."""

    kind: AskEventKind
    text: str = ""
    search: Search | None = None
    answer: str | None = None
    trajectory: Trajectory | None = None
