"""One experiment, every number of it: TOML -> this.

A recipe says what to train (model, data, stages), how to sample (rollout) and how to learn (trainer). Paths are
relative to the recipe's file until `searcher.recipes.load_recipe` makes them absolute. Combinations known to be wrong
are refused here.
"""

from enum import StrEnum
from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from searcher.contracts.base import Contract, Name
from searcher.contracts.question import RolloutPlan


class Advantage(StrEnum):
    REINFORCE_PP_BASELINE = "reinforce++-baseline"
    """Reward minus the mean of its group, then whitened over all policy tokens of the batch (R1-Searcher)."""
    GRPO = "grpo"
    """(Reward - group mean) / group standard deviation."""


class LossMean(StrEnum):
    TOKEN = "token"
    """Mean over all policy tokens of the batch: long trajectories weigh more (DAPO)."""
    SEQUENCE = "sequence"
    """Mean over tokens per trajectory, then over trajectories (R1-Searcher's micro batch of one)."""


class ModelRecipe(Contract):
    path: str
    """A Hugging Face model directory: config.json, *.safetensors, tokenizer."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"


class CorpusRecipe(Contract):
    """A passage collection and the index over it; built if it is not there."""

    source: str
    """JSONL (`id`, `title`, `text`), gzipped or plain, or R1-Searcher's TSV."""
    kind: Literal["bm25", "flat", "fp16", "pqfs", "rabitq", "ivf", "auto"] = "bm25"
    encoder: str | None = None
    """For all kinds but `bm25`: the name of an encoder the retriever knows."""


class StageEnd(Contract):
    """End a stage early once both rates held over `patience` consecutive steps."""

    search_rate: float = Field(default=0.0, ge=0.0, le=1.0)
    format_rate: float = Field(default=0.0, ge=0.0, le=1.0)
    patience: PositiveInt = 2


class Stage(Contract):
    name: Name
    questions: str
    """JSONL with `id` (or `idx`), `question`, `answer` or `answers`."""
    corpus: Name = "default"
    rules: Name
    max_steps: PositiveInt
    until: StageEnd | None = None


class TrainerRecipe(Contract):
    advantage: Advantage = Advantage.REINFORCE_PP_BASELINE
    whiten: bool = True
    """Whiten advantages over the batch's policy tokens (`reinforce++-baseline` only)."""
    learning_rate: PositiveFloat = 2e-6
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(default=0.0, ge=0.0)
    warmup_steps: int = Field(default=0, ge=0)
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Decay over all steps of all stages, down to a tenth."""
    max_grad_norm: PositiveFloat = 1.0
    clip_low: float | None = Field(default=0.2, gt=0.0, lt=1.0)
    """None leaves the ratio unclipped: refused when rollouts may be stale or a batch is used more than once."""
    clip_high: float | None = Field(default=0.2, gt=0.0)
    updates_per_step: PositiveInt = 1
    """Optimiser updates on one batch of trajectories, each on a disjoint part of it."""
    loss_mean: LossMean = LossMean.TOKEN
    importance_cap: PositiveFloat | None = 2.0
    """Truncated importance sampling: cap of the ratio trainer policy / sampling policy per token; None: uncorrected."""
    kl_coefficient: float = Field(default=0.0, ge=0.0)
    kl_in: Literal["reward", "loss"] = "reward"
    """k1 in the token rewards (R1-Searcher), or k3 added to the loss (GRPO)."""
    reward_clip: PositiveFloat = 10.0
    mask_documents: bool = True
    """False trains on retrieved text too: only for the ablation that shows why one must not."""
    max_tokens_per_row: PositiveInt = 8_192
    """Trajectories are packed into rows of this length; one longer than a row gets a row of its own."""
    rows_per_micro_batch: PositiveInt = 1
    zero_stage: Literal[0, 1, 2, 3] = 2
    offload_optimizer: bool = False
    gradient_checkpointing: bool = False
    num_processes: PositiveInt = 1
    """Data-parallel processes under torchrun, one per GPU."""
    device: Literal["cpu", "cuda"] = "cuda"


class EvaluationRecipe(Contract):
    questions: str
    corpus: Name = "default"
    every_steps: PositiveInt = 20
    num_questions: PositiveInt = 128
    """A fixed sample, balanced over hop counts where the data names them."""
    alongside: bool = False
    """Evaluate with engines of their own and go on training meanwhile; figures then come some steps later."""
    allow_overlap: bool = False
    """Evaluate on questions that are trained on too. Without it such a recipe is refused."""


class EngineRecipe(Contract):
    """How the vLLM server of this experiment is started."""

    max_num_seqs: PositiveInt = 128
    kv_cache_gib: PositiveFloat | None = None
    """Required on CPU; on GPU vLLM takes what `gpu_memory_utilization` leaves."""
    gpu_memory_utilization: float = Field(default=0.85, gt=0.0, lt=1.0)
    tensor_parallel_size: PositiveInt = 1
    replicas: PositiveInt = 1


class CheckpointRecipe(Contract):
    every_steps: PositiveInt = 20
    keep: PositiveInt = 2


class Recipe(Contract):
    name: Name
    description: str = ""
    seed: int = Field(default=42, ge=0)
    model: ModelRecipe
    corpora: dict[str, CorpusRecipe] = {}
    """Indexes by corpus name. Leave out corpora that a running retriever serves already."""
    rollout: RolloutPlan = RolloutPlan()
    questions_per_step: PositiveInt
    samples_per_question: int = Field(ge=2, le=1_024)
    max_staleness: int = Field(default=0, ge=0, le=64)
    """Optimiser steps by which rollouts may run ahead; 0 is the paper's synchronous loop."""
    stages: tuple[Stage, ...] = Field(min_length=1)
    trainer: TrainerRecipe = TrainerRecipe()
    engine: EngineRecipe = EngineRecipe()
    evaluation: EvaluationRecipe | None = None
    checkpoint: CheckpointRecipe = CheckpointRecipe()

    @property
    def max_steps(self) -> int:
        return sum(stage.max_steps for stage in self.stages)

    @property
    def trajectories_per_step(self) -> int:
        return self.questions_per_step * self.samples_per_question

    @property
    def evaluation_plan(self) -> RolloutPlan:
        """Greedy, and stopping at the answer, as published evaluations do."""
        return self.rollout.model_copy(update={"temperature": 0.0, "stop_at_answer": True})

    @model_validator(mode="after")
    def _refuse_what_is_known_to_fail(self) -> Self:
        unclipped = self.trainer.clip_low is None or self.trainer.clip_high is None
        if unclipped and (self.max_staleness > 0 or self.trainer.updates_per_step > 1):
            raise ValueError(
                "trainer.clip_low and trainer.clip_high must be set when max_staleness > 0 or updates_per_step > 1: "
                "an unclipped loss on stale samples collapses"
            )
        if self.rollout.temperature == 0.0 or self.rollout.top_p != 1.0:
            raise ValueError(
                f"rollout.temperature must be above 0 and rollout.top_p 1.0 (got {self.rollout.temperature}, "
                f"{self.rollout.top_p}): greedy samples teach nothing, tokens that were cut off have no probability"
            )
        if self.trajectories_per_step % self.trainer.updates_per_step:
            raise ValueError(
                f"questions_per_step x samples_per_question ({self.trajectories_per_step}) must be a multiple of "
                f"trainer.updates_per_step ({self.trainer.updates_per_step})"
            )
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stages must have different names, got {names}")
        return self
