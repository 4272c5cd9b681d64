"""A language model and a micro-batch -> the log-probability and entropy at every trained target.

B = rows, T = positions, N = trained targets of the micro-batch, V = vocabulary, D = hidden size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from services.trainer.batch import MicroBatch


@dataclass(frozen=True)
class Scored:
    """Aligned with targets; 0 where nothing is trained."""

    logprobs_BT: Tensor
    entropies_BT: Tensor


class HeadOnTargets:
    """Lets a language model's output layer see only the positions whose targets are trained.

    Most of a search trajectory is prompt and documents, and vocabularies are large: logits at every position would be
    most of the step's memory. The model's own forward stays as it is.
    """

    def __init__(self, model: Any) -> None:
        self.wanted_BT: Tensor | None = None
        model.get_output_embeddings().register_forward_pre_hook(self._select)

    def only(self, wanted_BT: Tensor) -> "HeadOnTargets":
        self.wanted_BT = wanted_BT
        return self

    def __enter__(self) -> None:
        assert self.wanted_BT is not None

    def __exit__(self, *error: object) -> None:
        self.wanted_BT = None

    def _select(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self.wanted_BT is None:
            return None
        hidden_BTD = arguments[0]
        return (hidden_BTD[self.wanted_BT],)


def score(model: nn.Module, head: HeadOnTargets, micro: MicroBatch, *, temperature: float = 1.0) -> Scored:
    """Of the distribution that is sampled at `temperature`, with gradient unless the caller disables it.

    The model builds causal blocks from where position_ids restart.
    """
    with head.only(micro.trained_mask_BT):
        logits_NV = model(input_ids=micro.input_ids_BT, position_ids=micro.position_ids_BT, use_cache=False).logits
    logits_NV = logits_NV.float() / temperature
    targets_N1 = micro.target_ids_BT[micro.trained_mask_BT].unsqueeze(-1)
    normaliser_N = logits_NV.logsumexp(-1)
    logprobs_N = logits_NV.gather(-1, targets_N1).squeeze(-1) - normaliser_N
    with torch.no_grad():
        entropies_N = normaliser_N - (torch.softmax(logits_NV, -1) * logits_NV).sum(-1)
    return Scored(_placed(logprobs_N, micro), _placed(entropies_N, micro))


def _placed(values_N: Tensor, micro: MicroBatch) -> Tensor:
    empty_BT = torch.zeros(micro.trained_mask_BT.shape, dtype=values_N.dtype, device=values_N.device)
    return empty_BT.masked_scatter(micro.trained_mask_BT, values_N)
