"""Gradients of weight matrices -> orthogonal updates (Muon, Jordan et al. 2024).

In fp32, and one batch for each shape of matrix: torch.optim.Muon computes in bf16, which is slow on most CPUs.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Parameter

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


class Muon(torch.optim.Optimizer):
    """For the matrices between a model's embedding and its head. Matrices of one shape are updated as one batch."""

    # M = matrices of one shape, R x C
    def __init__(self, matrices: Iterable[Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            same_shape: dict[torch.Size, list[Parameter]] = defaultdict(list)
            for matrix in group["params"]:
                same_shape[matrix.shape].append(matrix)
            for (rows, columns), matrices in same_shape.items():
                nesterov_MRC = torch.stack([self._nesterov(matrix, group["momentum"]) for matrix in matrices])
                # Keeps the size of an update's effect on an activation alike for tall and wide matrices.
                rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                for matrix, update_RC in zip(matrices, orthogonalise(nesterov_MRC), strict=True):
                    matrix.sub_(update_RC, alpha=rate)

    def _nesterov(self, matrix: Parameter, momentum: float) -> Tensor:
        assert matrix.grad is not None
        state = self.state[matrix]
        if not state:
            state["average"] = torch.zeros_like(matrix)
        state["average"].lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(state["average"], momentum)


def orthogonalise(matrices_MRC: Tensor) -> Tensor:
    """Roughly U V^T of each matrix's singular value decomposition, by a quintic Newton-Schulz iteration."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices_MRC.shape[1] > matrices_MRC.shape[2]
    x: Tensor = matrices_MRC.mT if tall else matrices_MRC
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)  # singular values at most 1, where the iteration converges
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x
