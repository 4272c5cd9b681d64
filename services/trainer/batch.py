"""Scored groups -> the tensors that one optimiser step reads. No model here: only which token stands where.

B = rows of a micro-batch, T = positions of its longest row, L = tokens of one trajectory (prompt included),
G = groups, S = samples of a group.

Position t predicts token t + 1, so everything but `input_ids` and `position_ids` describes the *target* at t:

    input_ids    prompt prompt | think query | docs docs | think answer     next trajectory …
    target       prompt think    query docs    docs think  answer  –
    policy_mask    F      T        T     F       F    T      T     F
    position_ids   0      1        2     3       4    5      6     7        0 1 2 …

A row holds several trajectories; where `position_ids` restart, attention restarts too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from searcher.contracts.experience import ScoredGroup
from searcher.contracts.recipe import LossMean, TrainerRecipe
from searcher.contracts.trajectory import Trajectory
from services.trainer.processes import Part


@dataclass(frozen=True)
class Example:
    """One trajectory as numbers, L long, aligned with its own tokens (not yet with targets)."""

    token_ids: list[int]
    sampled: list[bool]
    """True exactly on ids that the engine sampled."""
    trained: list[bool]
    """Where the loss is: `sampled`, unless a recipe asks for the ablation that trains on documents too."""
    logprobs: list[float]
    advantage: float

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class MicroBatch:
    """Rows that go through the model together."""

    input_ids_BT: Tensor
    position_ids_BT: Tensor
    target_ids_BT: Tensor
    policy_mask_BT: Tensor
    """True exactly where the target was sampled by the engine."""
    trained_mask_BT: Tensor
    """Where the loss is; equals `policy_mask_BT` in every run that masks documents."""
    rollout_logprobs_BT: Tensor
    """Of the target, under the policy that sampled it; 0 where nobody sampled it."""
    advantages_BT: Tensor
    loss_weights_BT: Tensor
    """They add up to 1 over one optimiser update, all processes together: the mean is in here."""
    old_logprobs_BT: Tensor | None = None
    """Of the target under the policy that the step started with; None where that is the policy being updated."""
    reference_logprobs_BT: Tensor | None = None

    def to(self, device: torch.device) -> Self:
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})


@dataclass(frozen=True)
class Batch:
    """One training step: its optimiser updates in order, each a tuple of micro-batches of this process."""

    updates: tuple[tuple[MicroBatch, ...], ...]

    def each(self, change: Callable[[MicroBatch], MicroBatch]) -> "Batch":
        return Batch(tuple(tuple(change(micro) for micro in update) for update in self.updates))

    @property
    def micro_batches(self) -> list[MicroBatch]:
        return [micro for update in self.updates for micro in update]


def pack(groups: Sequence[ScoredGroup], advantages_GS: Tensor, recipe: TrainerRecipe, *, part: Part) -> Batch:
    """This process's part of a step. Every process packs all of it and keeps its own rows, so nothing is negotiated.

    Processes get equally many micro-batches (ZeRO-3 needs that); where rows run out, an empty one stands in.
    """
    examples = [
        example_of(trajectory, float(advantage), mask_documents=recipe.mask_documents)
        for group, advantages_S in zip(groups, advantages_GS, strict=True)
        for trajectory, advantage in zip(group.trajectories, advantages_S, strict=True)
    ]
    per_update, rest = divmod(len(examples), recipe.updates_per_step)
    assert rest == 0, (len(examples), recipe.updates_per_step)
    parts = (examples[first : first + per_update] for first in range(0, len(examples), per_update))
    return Batch(tuple(_update(examples, recipe, part) for examples in parts))


def _update(examples: Sequence[Example], recipe: TrainerRecipe, part: Part) -> tuple[MicroBatch, ...]:
    weights = loss_weights(examples, recipe.loss_mean)
    rows = fill_rows([len(example) for example in examples], recipe.max_tokens_per_row)
    size = recipe.rows_per_micro_batch
    chunks = [rows[first : first + size] for first in range(0, len(rows), size)]
    chunks += [[]] * (-len(chunks) % part.count)
    return tuple(micro_batch(chunk, examples, weights) for chunk in chunks[part.index :: part.count])


def example_of(trajectory: Trajectory, advantage: float, *, mask_documents: bool = True) -> Example:
    prompt = len(trajectory.prompt_ids)
    sampled = [False] * prompt + trajectory.policy_mask
    trained = sampled if mask_documents else [False] * prompt + [True] * (len(sampled) - prompt)
    return Example(
        token_ids=[*trajectory.prompt_ids, *trajectory.token_ids],
        sampled=sampled,
        trained=trained,
        logprobs=[0.0] * prompt + trajectory.logprobs,
        advantage=advantage,
    )


def loss_weights(examples: Sequence[Example], mean: LossMean) -> list[float]:
    """What one trained token of each example counts; all trained tokens together count 1."""
    lengths = [sum(example.trained) for example in examples]
    if mean is LossMean.TOKEN:
        return [1.0 / max(sum(lengths), 1)] * len(lengths)
    num_trained = max(sum(length > 0 for length in lengths), 1)
    return [1.0 / (max(length, 1) * num_trained) for length in lengths]


def fill_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """First-fit decreasing: indices per row, fullest rows first. Longer than a row: a row of its own."""
    rows: list[list[int]] = []
    filled: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        for row, used in enumerate(filled):
            if used + lengths[index] <= capacity:
                rows[row].append(index)
                filled[row] += lengths[index]
                break
        else:
            rows.append([index])
            filled.append(lengths[index])
    # Neighbours share a micro-batch, which is as wide as its fullest row: similar fill wastes least.
    return [rows[row] for row in sorted(range(len(rows)), key=lambda row: (-filled[row], row))]


def micro_batch(rows: Sequence[Sequence[int]], examples: Sequence[Example], weights: Sequence[float]) -> MicroBatch:
    """Rows of example indices -> tensors, right-padded to the fullest row. No rows: one empty row of one token."""
    B = max(len(rows), 1)
    T = max((sum(len(examples[i]) for i in row) for row in rows), default=1)
    input_ids_BT = torch.zeros(B, T, dtype=torch.int64)
    # Padding continues the last trajectory's positions: it starts no block of its own, and nothing looks back at it.
    position_ids_BT = torch.arange(T).repeat(B, 1)
    target_ids_BT = torch.zeros(B, T, dtype=torch.int64)
    policy_mask_BT = torch.zeros(B, T, dtype=torch.bool)
    trained_mask_BT = torch.zeros(B, T, dtype=torch.bool)
    rollout_logprobs_BT = torch.zeros(B, T)
    advantages_BT = torch.zeros(B, T)
    loss_weights_BT = torch.zeros(B, T)
    for b, row in enumerate(rows):
        start = 0
        for index in row:
            example = examples[index]
            end = start + len(example)
            here, targets = slice(start, end), slice(start, end - 1)
            input_ids_BT[b, here] = torch.tensor(example.token_ids)
            position_ids_BT[b, start:] = torch.arange(T - start)
            target_ids_BT[b, targets] = input_ids_BT[b, start + 1 : end]
            policy_mask_BT[b, targets] = torch.tensor(example.sampled[1:])
            trained_mask_BT[b, targets] = torch.tensor(example.trained[1:])
            rollout_logprobs_BT[b, targets] = torch.tensor(example.logprobs[1:])
            advantages_BT[b, here] = trained_mask_BT[b, here] * example.advantage
            loss_weights_BT[b, here] = trained_mask_BT[b, here] * weights[index]
            start = end
    return MicroBatch(
        input_ids_BT=input_ids_BT,
        position_ids_BT=position_ids_BT,
        target_ids_BT=target_ids_BT,
        policy_mask_BT=policy_mask_BT,
        trained_mask_BT=trained_mask_BT,
        rollout_logprobs_BT=rollout_logprobs_BT,
        advantages_BT=advantages_BT,
        loss_weights_BT=loss_weights_BT,
    )
