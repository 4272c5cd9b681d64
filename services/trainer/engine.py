"""Micro-batches -> updated weights: the model under DeepSpeed. The only place that imports deepspeed or transformers.

What to learn is decided elsewhere (batch.py, advantage.py, loss.py); here is forward, backward, update, and the state
that a checkpoint needs.
"""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from searcher.contracts.recipe import Advantage, Recipe
from services.trainer.advantage import penalise_divergence, whiten
from services.trainer.batch import Batch, MicroBatch
from services.trainer.logprobs import HeadOnTargets, Scored, score
from services.trainer.loss import LossReport, LossSums, policy_loss, report_of
from services.trainer.processes import Processes

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class StepReport:
    """One training step: its updates in order."""

    updates: tuple[LossReport, ...]
    grad_norms: tuple[float, ...]
    """Before clipping. Many times its usual size: a bad batch, or the start of a collapse."""
    learning_rate: float


class TrainingEngine:
    """The policy, its optimiser and (with a KL coefficient) its frozen reference, on this process's device."""

    def __init__(self, recipe: Recipe, processes: Processes) -> None:
        self.recipe, self.processes, self.device = recipe, processes, processes.device
        _prepare_imports(recipe)
        self.policy = _load_model(recipe)
        if recipe.trainer.gradient_checkpointing:
            self.policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.policy_head = HeadOnTargets(self.policy)
        self.deepspeed = _initialize(self.policy, recipe, processes)
        self.reference: nn.Module | None = None
        if recipe.trainer.kl_coefficient > 0:
            self.reference = _load_model(recipe).to(self.device).eval().requires_grad_(False)
            self.reference_head = HeadOnTargets(self.reference)

    def prepare(self, batch: Batch) -> Batch:
        """What a step needs beyond its trajectories: log-probabilities of fixed policies, and advantages per token."""
        recipe = self.recipe.trainer
        if self.reference is not None:
            batch = batch.each(lambda micro: replace(micro, reference_logprobs_BT=self._reference_logprobs(micro)))
            if recipe.kl_in == "reward":
                batch = batch.each(self._penalised)
        if len(batch.updates) > 1:  # the policy moves within the step: the ratio needs the one it started from
            batch = batch.each(lambda micro: replace(micro, old_logprobs_BT=self._logprobs(micro)))
        if recipe.whiten and recipe.advantage is Advantage.REINFORCE_PP_BASELINE:
            batch = whiten(batch, self.processes.total)
        return batch

    def step(self, batch: Batch, *, learning_rate: float) -> StepReport:
        """One pass over the batch: an optimiser step after each of its updates."""
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate
        reports, norms = [], []
        for update in batch.updates:
            sums = [self._accumulate(micro.to(self.device), is_last=micro is update[-1]) for micro in update]
            norms.append(self._update())
            reports.append(self._report(sums))
        return StepReport(tuple(reports), tuple(norms), learning_rate)

    def weights(self) -> dict[str, Tensor]:
        """All parameters under their Hugging Face names, tied ones once; empty on all processes but the first."""
        weights: dict[str, Tensor] = {}
        for name, parameter in self.policy.named_parameters():
            with self._gathered(parameter):
                if self.processes.is_first:
                    weights[name] = parameter.detach().to("cpu", copy=True).contiguous()
        return weights

    def save(self, directory: Path) -> None:
        """Every process writes its part of weights and optimiser."""
        self.deepspeed.save_checkpoint(str(directory), tag="state", save_latest=False)

    def load(self, directory: Path) -> None:
        # DeepSpeed's files are pickles: the caller has verified them against our own manifest.
        self.deepspeed.load_checkpoint(str(directory), tag="state")

    def _penalised(self, micro: MicroBatch) -> MicroBatch:
        assert micro.reference_logprobs_BT is not None
        kl_BT = self._logprobs(micro) - micro.reference_logprobs_BT
        return penalise_divergence(micro, kl_BT, coefficient=self.recipe.trainer.kl_coefficient)

    @torch.no_grad()
    def _logprobs(self, micro: MicroBatch) -> Tensor:
        return self._score(self.deepspeed, self.policy_head, micro.to(self.device)).logprobs_BT.cpu()

    @torch.no_grad()
    def _reference_logprobs(self, micro: MicroBatch) -> Tensor:
        assert self.reference is not None
        return self._score(self.reference, self.reference_head, micro.to(self.device)).logprobs_BT.cpu()

    def _score(self, model: nn.Module, head: HeadOnTargets, micro: MicroBatch) -> Scored:
        return score(model, head, micro, temperature=self.recipe.rollout.temperature)

    def _accumulate(self, micro: MicroBatch, *, is_last: bool) -> LossSums:
        scored = self._score(self.deepspeed, self.policy_head, micro)
        loss, sums = policy_loss(scored.logprobs_BT, scored.entropies_BT, micro, self.recipe.trainer)
        self.deepspeed.set_gradient_accumulation_boundary(is_last)
        # DeepSpeed averages gradients over processes; our weights already add up to 1 over all of them.
        self.deepspeed.backward(loss * self.processes.part.count, scale_wrt_gas=False)
        return sums

    def _update(self) -> float:
        norm = None
        if self.recipe.trainer.zero_stage == 0:  # DeepSpeed reports no norm for plain fp32 training
            norm = torch.nn.utils.get_total_norm([p.grad for p in self.policy.parameters() if p.grad is not None])
        self.deepspeed.step()
        reported = self.deepspeed.get_global_grad_norm()
        return float(reported if reported is not None else norm if norm is not None else float("nan"))

    def _report(self, sums: Sequence[LossSums]) -> LossReport:
        added = torch.stack([one.added() for one in sums]).sum(0)
        largest = torch.stack([one.difference_max for one in sums]).max()
        return report_of(self.processes.total(added), self.processes.largest(largest))

    def _gathered(self, parameter: nn.Parameter) -> Any:
        import deepspeed

        return deepspeed.zero.GatheredParameters([parameter], enabled=self.recipe.trainer.zero_stage == 3)


def _prepare_imports(recipe: Recipe) -> None:
    """Before anything imports DeepSpeed (transformers does)."""
    if recipe.trainer.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it, also for a process that is alone
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its imports warn about torch's own deprecations
        import deepspeed
        from deepspeed.utils import logger
    logger.setLevel("WARNING")
    # Used by tensor-parallel inference only, but compiled at start-up (minutes) wherever there is a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _load_model(recipe: Recipe) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(
        recipe.model.path,
        dtype=DTYPES[recipe.model.dtype],
        attn_implementation=recipe.model.attention,
        use_safetensors=True,
        local_files_only=True,
    )


def _initialize(policy: Any, recipe: Recipe, processes: Processes) -> Any:
    import deepspeed

    trainer = recipe.trainer
    engine, *_ = deepspeed.initialize(
        model=policy,
        optimizer=_optimizer(policy, recipe),
        config={
            # How many micro-batches a step has depends on its trajectories: we mark the last one ourselves.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": trainer.max_grad_norm,
            "zero_optimization": {
                "stage": trainer.zero_stage,
                **({"offload_optimizer": {"device": "cpu", "pin_memory": True}} if trainer.offload_optimizer else {}),
            },
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": recipe.model.dtype == "bfloat16"},
            "fp16": {"enabled": recipe.model.dtype == "float16"},
            # Hundreds of micro-batches add up in one step: in bfloat16 the small ones would be lost.
            "data_types": {"grad_accum_dtype": "fp32" if recipe.model.dtype == "bfloat16" else None},
            "checkpoint": {"tag_validation": "Ignore"},
            "steps_per_print": 1_000_000_000,
        },
        dist_init_required=False,
    )
    return engine


def _optimizer(policy: nn.Module, recipe: Recipe) -> Any:
    trainer = recipe.trainer
    options: dict[str, Any] = {
        "lr": trainer.learning_rate,
        "betas": trainer.betas,
        "weight_decay": trainer.weight_decay,
    }
    if trainer.offload_optimizer:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(policy.parameters(), adamw_mode=True, **options)
    return torch.optim.AdamW(policy.parameters(), fused=True, **options)
