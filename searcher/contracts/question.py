"""trainer -> rollout: a question, how often and how to sample it, and by which rules to score it."""

from enum import StrEnum
from typing import Any, Self

from pydantic import AliasChoices, Field, field_validator, model_validator

from searcher.contracts.base import Contract, Name, ShortText
from searcher.contracts.weights import WeightVersion


class Question(Contract):
    """A question and its accepted answers.

    Files in the field call these `answer`, `answers` or `golden_answers` (a string or a list); all are read.
    """

    id: str = Field(max_length=256)
    question: ShortText
    answers: tuple[ShortText, ...] = Field(
        min_length=1, max_length=256, validation_alias=AliasChoices("answers", "answer", "golden_answers")
    )
    hops: int | None = Field(default=None, ge=1, le=16)
    """How many facts the answer joins, where the data set says so."""
    gold_ids: tuple[str, ...] = ()
    """Passages that hold the evidence, where the data set says so."""
    corpus: Name = "default"
    """Which of the retriever's corpora answers it."""

    @field_validator("id", mode="before")
    @classmethod
    def _id_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("answers", mode="before")
    @classmethod
    def _one_answer_is_a_list_of_one(cls, value: Any) -> Any:
        """Booleans become yes/no, as in the published metric scripts."""
        many = value if isinstance(value, list | tuple) else [value]
        return [
            "yes" if v is True else "no" if v is False else str(v) if isinstance(v, int | float) else v for v in many
        ]


class SearchMode(StrEnum):
    MULTI_TURN = "multi-turn"
    """The policy searches when, for what and as often as it wants: what is trained."""
    ONCE = "once"
    """Standard RAG: one search with the question itself, its passages in the prompt, no further search."""
    NONE = "none"
    """No search: what the weights know."""


class RolloutPlan(Contract):
    """How a trajectory is sampled. The defaults are R1-Searcher's training settings."""

    template: Name = "r1-searcher-base"
    """A prompt template by name (`searcher.qa.prompt`)."""
    search: SearchMode = SearchMode.MULTI_TURN
    """Other modes are baselines of an evaluation; their prompts come from the same family of templates."""
    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    """0 is greedy. In training the policy is the distribution at this temperature, for engine and trainer alike."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    max_tokens_per_turn: int = Field(default=512, ge=1, le=32_768)
    max_searches: int = Field(default=8, ge=0, le=64)
    """Asking once more than this ends the trajectory as it is."""
    documents_per_search: int = Field(default=3, ge=1, le=100)
    max_document_tokens: int = Field(default=2_048, ge=16, le=131_072)
    """One search's documents are cut to this many tokens."""
    max_context_tokens: int = Field(default=8_192, ge=32, le=1_048_576)
    """Prompt and response together; a turn that does not fit ends the trajectory."""
    stop_at_answer: bool = False
    """Stop at `</answer>`, as the published evaluation does. In training the policy must learn to stop by itself."""
    seed: int | None = Field(default=None, ge=0)
    """Makes sampling repeatable: sample i of a question uses a seed derived from this, the question's id and i."""


class QuestionTask(Contract):
    """One entry of the stream `questions:<run>`: the unit of work, of delivery and of advantage normalisation."""

    group_id: Name
    """Unique in the run and derived from the sampler's position, so that asking again is recognised."""
    run_id: Name
    stage: Name
    question: Question
    num_samples: int = Field(ge=1, le=1_024)
    plan: RolloutPlan
    rules: Name
    """The reward rule set."""
    min_weights: WeightVersion | None = None
    """Sample from these weights or newer ones of the same run; None: from whatever the engines hold."""


class RolloutRequest(Contract):
    """`POST /v1/rollouts`: questions -> trajectories, scored if `rules` are given."""

    questions: tuple[Question, ...] = Field(min_length=1, max_length=512)
    num_samples: int = Field(default=1, ge=1, le=64)
    plan: RolloutPlan = RolloutPlan()
    rules: Name | None = None
    weights: Name | None = None
    """Demand this weight version by name; 409 if the engines hold another."""

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        total = len(self.questions) * self.num_samples
        if total > 4_096:
            raise ValueError(f"questions x num_samples is {total}; at most 4096 trajectories fit one request")
        return self


class AskRequest(Contract):
    """`POST /v1/ask`: one question -> its trajectory, streamed as it is written."""

    question: ShortText
    corpus: Name = "default"
    plan: RolloutPlan = RolloutPlan(temperature=0.0, stop_at_answer=True)
