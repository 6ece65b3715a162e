r"""Spectral restricted isometry: the square of the largest |λ| of G - I, by a differentiable power iteration.

For the kernel matrix W: (m, n) with G the smaller of WᵀW and WWᵀ, a random v and D = G - I,

    u = D v,     R(W) = |D u / |u||²  <=  σ(D)² = max_i (s_i² - 1)²          s_i: the singular values of W

Source: Bansal, Chen, Wang, NeurIPS 2018, section 3.4, and their scripts: v is drawn anew at every step and the gradient
runs through both products. Two products are few: the value is a lower estimate of σ(D)², and its expectation is what
the published experiments minimized. ``iterations`` makes it as exact as wanted.

Published coefficients: 1e-2 for CIFAR and SVHN, 1e-6 for ImageNet, falling by `thalweg.regularize.srip_table`.

Deviations: D v is computed as Wᵀ(W v) - v, never forming G. The smaller Gram is taken, as in the authors' script for
Wide ResNets; those for SVHN and ImageNet always take WᵀW, for which σ >= 1 where m < n. v is Gaussian, as in those two:
its direction is isotropic (the first script's uniform [0, 1) leans to the vector of ones). |u| = 0 gives 0, not NaN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from thalweg.regularize.layer import Layer, check_matrices
from thalweg.regularize.penalty import LayerPenalty, PenaltyOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["SRIP", "srip"]


def srip(
    W: Tensor, *, iterations: int = 1, start: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Estimate of σ(G - I)² from below, by power iteration.

    Args:
        W: (m, n), or (b, m, n) for the block-diagonal matrix of b blocks.
        iterations: normalized products before the last one; 1 is the published number.
        start: v: (k,) or (b, k) with k = min(m, n); drawn if not given.
        generator: draws v; None draws from the global random state.

    Raises:
        ValueError: no iteration, or a tensor of another shape.

    >>> round(float(srip(torch.diag(torch.tensor([2.0, 1.0])), start=torch.ones(2))), 4)  # (2² - 1)²
    9.0
    """
    if iterations < 1:
        raise ValueError(f"iterations={iterations}: SRIP's power iteration makes at least one")
    check_matrices(W)
    tall = W if W.shape[-2] >= W.shape[-1] else W.mT
    if start is None:
        device = W.device if generator is None else generator.device
        start = torch.randn(*tall.shape[:-2], tall.shape[-1], generator=generator, device=device).to(W)
    elif start.shape != (*tall.shape[:-2], tall.shape[-1]):
        expected = (*tall.shape[:-2], tall.shape[-1])
        raise ValueError(f"a start of shape {expected} expected for W {tuple(W.shape)}, got {tuple(start.shape)}")
    v = start.unsqueeze(-1)
    for _ in range(iterations):
        u = _defect_product(tall, v)
        v = u / torch.linalg.vector_norm(u).clamp(min=torch.finfo(u.dtype).tiny)
    return _defect_product(tall, v).square().sum()


def _defect_product(W: Tensor, v: Tensor) -> Tensor:
    """(WᵀW - I) v."""
    return W.mT @ (W @ v) - v


class SRIP(LayerPenalty):
    """SRIP over the kernel matrices of a model's layers; a grouped convolution is a block-diagonal matrix.

    Args:
        coefficient: 1e-2 is published for CIFAR, to be lowered by ``schedule=srip_table(steps_per_epoch)``.
        iterations: of `srip`.
        options: those of `LayerPenalty`; ``generator`` draws the starting vectors.

    >>> model = torch.nn.Linear(2, 2, bias=False)
    >>> _ = torch.nn.init.zeros_(model.weight)
    >>> SRIP(1e-2)(model).detach()  # σ(0 - I)² = 1
    tensor(0.0100)
    """

    def __init__(self, coefficient: float = 1e-2, *, iterations: int = 1, **options: Unpack[PenaltyOptions]) -> None:
        super().__init__(coefficient, **options)
        if iterations < 1:
            raise ValueError(f"iterations={iterations}: SRIP's power iteration makes at least one")
        self.iterations = iterations

    def value(self, layer: Layer) -> Tensor:
        return srip(layer.matrices, iterations=self.iterations, generator=self.generator)
