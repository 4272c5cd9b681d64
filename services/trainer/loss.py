"""Log-probabilities and advantages -> the loss of one micro-batch, and the figures that say whether it is healthy.

B = rows, T = positions; everything is aligned with targets (see batch.py).

    rho  = min(p_trainer / p_engine, cap)                 truncated importance sampling, no gradient
    r    = p_new / p_old                                  exactly 1 when a batch is used for one update
    gain = rho * min(r A, clip(r, 1 - low, 1 + high) A)   PPO
    loss = -sum(weight * gain)  [+ coefficient * sum(weight * k3)]

The weights hold the mean (over tokens or sequences of the whole update), so micro-batches and processes just add up.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from searcher.contracts.recipe import TrainerRecipe
from services.trainer.batch import MicroBatch


@dataclass(frozen=True)
class LossReport:
    """One optimiser update, over the tokens that the policy sampled."""

    loss: float
    """Near 0 on a fresh batch, where advantages cancel; its size says nothing about progress."""
    clip_fraction: float
    """Tokens whose ratio left the trust region. Above ~0.3 the rollouts are too stale."""
    entropy: float
    """Of the policy at its own tokens, in nats. Towards 0: it stops exploring. Rising without end: it falls apart."""
    policy_kl: float
    """KL(old policy || new policy) within the step (k3). 0 with one update per step."""
    reference_kl: float
    """KL(policy || reference) (k3); 0 without a KL coefficient."""
    logprob_difference_mean: float
    """|log p| of trainer minus engine on the same tokens. Above ~0.05 the two do not run the same model."""
    logprob_difference_max: float
    importance_mean: float
    """Mean capped ratio trainer / engine; far from 1 means stale or mismatched rollouts."""
    importance_capped: float
    """Tokens whose ratio was cut at the cap."""
    num_tokens: int
    """Tokens that the policy sampled."""


@dataclass(frozen=True)
class LossSums:
    """What a micro-batch adds to the report: sums over its policy tokens (and one maximum)."""

    loss: Tensor
    clipped: Tensor
    entropy: Tensor
    policy_kl: Tensor
    reference_kl: Tensor
    difference: Tensor
    importance: Tensor
    capped: Tensor
    tokens: Tensor
    difference_max: Tensor

    def added(self) -> Tensor:
        return torch.stack([getattr(self, f.name).double() for f in fields(self)[:-1]])


def policy_loss(
    logprobs_BT: Tensor, entropies_BT: Tensor, batch: MicroBatch, recipe: TrainerRecipe
) -> tuple[Tensor, LossSums]:
    """The loss with its gradient, and its sums without. `logprobs_BT` are of the policy that is updated."""
    old_logprobs_BT = logprobs_BT.detach() if batch.old_logprobs_BT is None else batch.old_logprobs_BT
    policy_BT = batch.policy_mask_BT
    # Only tokens of the engine have an engine's log-probability; a document token (ablation) is left as it is.
    engine_ratio_BT = (old_logprobs_BT - batch.rollout_logprobs_BT).exp().masked_fill(~policy_BT, 1.0)
    importance_BT = torch.ones_like(engine_ratio_BT)
    if recipe.importance_cap is not None:
        importance_BT = engine_ratio_BT.clamp(max=recipe.importance_cap)

    ratio_BT = (logprobs_BT - old_logprobs_BT).exp()
    low = 0.0 if recipe.clip_low is None else 1.0 - recipe.clip_low
    high = float("inf") if recipe.clip_high is None else 1.0 + recipe.clip_high
    clipped_BT = ratio_BT.clamp(low, high)
    gain_BT = importance_BT * torch.minimum(ratio_BT * batch.advantages_BT, clipped_BT * batch.advantages_BT)
    loss = -(gain_BT * batch.loss_weights_BT).sum()

    reference_k3_BT = torch.zeros_like(loss).expand_as(ratio_BT)
    if batch.reference_logprobs_BT is not None:
        reference_k3_BT = k3(batch.reference_logprobs_BT - logprobs_BT).masked_fill(~policy_BT, 0.0)
        if recipe.kl_in == "loss":
            loss = loss + recipe.kl_coefficient * (reference_k3_BT * batch.loss_weights_BT).sum()

    with torch.no_grad():
        difference_BT = (old_logprobs_BT - batch.rollout_logprobs_BT).abs().masked_fill(~policy_BT, 0.0)
        cut_BT = (
            torch.zeros_like(policy_BT) if recipe.importance_cap is None else engine_ratio_BT > recipe.importance_cap
        )
        sums = LossSums(
            loss=loss.detach(),
            clipped=((ratio_BT != clipped_BT) & policy_BT).sum(),
            entropy=entropies_BT[policy_BT].sum(),
            policy_kl=k3(logprobs_BT - old_logprobs_BT)[policy_BT].sum(),
            reference_kl=reference_k3_BT.sum(),
            difference=difference_BT.sum(),
            importance=importance_BT[policy_BT].sum(),
            capped=(cut_BT & policy_BT).sum(),
            tokens=policy_BT.sum(),
            difference_max=difference_BT.max(),
        )
    return loss, sums


def k3(log_ratio: Tensor) -> Tensor:
    """Schulman's low-variance estimate of KL(p || q) from log q - log p: never negative."""
    return log_ratio.exp() - log_ratio - 1.0


def report_of(added: Tensor, difference_max: Tensor) -> LossReport:
    """Sums over all micro-batches of all processes -> means."""
    loss, clipped, entropy, policy_kl, reference_kl, difference, importance, capped, tokens = added.tolist()
    count = max(tokens, 1.0)
    return LossReport(
        loss=loss,
        clip_fraction=clipped / count,
        entropy=entropy / count,
        policy_kl=policy_kl / count,
        reference_kl=reference_kl / count,
        logprob_difference_mean=difference / count,
        logprob_difference_max=float(difference_max),
        importance_mean=importance / count,
        importance_capped=capped / count,
        num_tokens=int(tokens),
    )
