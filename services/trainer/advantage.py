"""Rewards -> the advantage of every trained token.

G = groups (questions), S = samples of a group, B = rows, T = positions.

    reinforce++-baseline   A = clip(r - mean of its group);  then A = (A - mean) / sqrt(var) over all trained tokens
    grpo                   A = clip((r - mean of its group) / (std of its group + 1e-9))

as R1-Searcher trains (OpenRLHF's `reinforce_baseline` and `group_norm`). With a KL penalty in the reward, a token's
advantage also holds the penalties from it to the end of its trajectory (discount 1).
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from searcher.contracts.recipe import Advantage, TrainerRecipe
from services.trainer.batch import Batch, MicroBatch

Total = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes."""


def group_advantages(rewards_GS: Tensor, recipe: TrainerRecipe) -> Tensor:
    """Each reward against the other samples of its question; a group of equal rewards gets zeros."""
    advantages_GS = rewards_GS - rewards_GS.mean(dim=1, keepdim=True)
    if recipe.advantage is Advantage.GRPO:
        advantages_GS = advantages_GS / (rewards_GS.std(dim=1, keepdim=True) + 1e-9)
    return advantages_GS.clamp(-recipe.reward_clip, recipe.reward_clip)


def whiten(batch: Batch, total: Total) -> Batch:
    """Mean 0 and variance 1 over the trained tokens of the whole batch, of all processes."""
    values_N = torch.cat([micro.advantages_BT[micro.trained_mask_BT] for micro in batch.micro_batches]).double()
    count, value_sum = total(torch.stack([torch.tensor(float(len(values_N))).double(), values_N.sum()]))
    mean = value_sum / count.clamp(min=1)
    variance = total((values_N - mean).square().sum()) / count.clamp(min=1)
    scale = variance.clamp(min=1e-8).rsqrt()

    def whitened(micro: MicroBatch) -> MicroBatch:
        advantages_BT = ((micro.advantages_BT.double() - mean) * scale).float()
        return replace(micro, advantages_BT=advantages_BT.masked_fill(~micro.trained_mask_BT, 0.0))

    return batch.each(whitened)


def penalise_divergence(micro: MicroBatch, kl_BT: Tensor, *, coefficient: float) -> MicroBatch:
    """Subtract from each token's advantage the KL penalties from it to the end of its trajectory.

    `kl_BT` is log p(policy) - log p(reference) of the targets (the k1 estimate). Documents are not the policy's choice:
    they add no penalty.
    """
    penalties_BT = (coefficient * kl_BT).masked_fill(~micro.policy_mask_BT, 0.0)
    advantages_BT = micro.advantages_BT - penalties_to_go(penalties_BT, micro.position_ids_BT)
    return replace(micro, advantages_BT=advantages_BT.masked_fill(~micro.trained_mask_BT, 0.0))


def penalties_to_go(penalties_BT: Tensor, position_ids_BT: Tensor) -> Tensor:
    """Reverse cumulative sum that starts anew with every trajectory of a row."""
    to_go_BT = penalties_BT.flip(1).cumsum(1).flip(1)
    for b, starts in enumerate((position_ids_BT == 0).unbind()):
        later_starts = starts.nonzero().flatten().tolist()[1:]
        for start in reversed(later_starts):  # what follows belongs to other trajectories
            to_go_BT[b, :start] -= to_go_BT[b, start].clone()
    return to_go_BT
