r"""Soft orthogonality and its variants: how far a layer's kernel matrix is from having orthonormal rows or columns.

With W: (m, n) the kernel as out x (in · taps), and G the smaller of its Gram matrices WᵀW and WWᵀ,

    SO    |G - I|_F²
    DSO   |WᵀW - I_n|_F² + |WWᵀ - I_m|_F²
    MC    max |G - I|                                    mutual coherence

Source: Bansal, Chen, Wang, "Can we gain more from orthogonality regularizations in training deep CNNs?", NeurIPS 2018,
section 3 (seed 002 calls SO "weights orthogonalization").

Deviations: the paper writes WᵀW throughout. Where m < n it has rank at most m, so |WᵀW - I| >= 1 whatever W is; the
smaller Gram can be the identity. For SO only a constant is at stake, since

    |WᵀW - I_n|_F² = |WWᵀ - I_m|_F² + n - m,

and by the same identity **DSO = 2 SO + |n - m|**: its gradient is that of SO at twice the coefficient, so the two can
differ in nothing but the coefficient. MC (and SRIP) do depend on the side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from thalweg.regularize.layer import Layer, check_matrices
from thalweg.regularize.penalty import LayerPenalty, PenaltyOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "DoubleSoftOrthogonality",
    "MutualCoherence",
    "SoftOrthogonality",
    "double_soft_orthogonality",
    "mutual_coherence",
    "soft_orthogonality",
]


def gram_defect(W: Tensor) -> Tensor:
    """G - I for the smaller Gram matrix of W: (m, n) or (b, m, n)."""
    check_matrices(W)
    m, n = W.shape[-2:]
    G = W @ W.mT if m < n else W.mT @ W
    return G - torch.eye(min(m, n), dtype=W.dtype, device=W.device)


def soft_orthogonality(W: Tensor) -> Tensor:
    """|G - I|_F² of a matrix W: (m, n), or of the block-diagonal matrix of W: (b, m, n).

    Raises:
        ValueError: a tensor of another shape.

    >>> soft_orthogonality(torch.tensor([[1.0, 1.0, 0.0]])), soft_orthogonality(torch.eye(3)[:2])
    (tensor(1.), tensor(0.))
    """
    return gram_defect(W).square().sum()


def double_soft_orthogonality(W: Tensor) -> Tensor:
    """|WᵀW - I|_F² + |WWᵀ - I|_F² of W: (m, n) or of b diagonal blocks (b, m, n); equal to 2 SO + b |n - m|.

    Raises:
        ValueError: a tensor of another shape.

    >>> double_soft_orthogonality(torch.tensor([[1.0, 1.0, 0.0]]))
    tensor(4.)
    """
    check_matrices(W)
    blocks, difference = W.shape[:-2].numel(), abs(W.shape[-2] - W.shape[-1])
    return 2 * soft_orthogonality(W) + blocks * difference


def mutual_coherence(W: Tensor) -> Tensor:
    """Largest |G - I| of W: (m, n) or of b diagonal blocks (b, m, n); entries that attain it share the gradient.

    Raises:
        ValueError: a tensor of another shape.

    >>> mutual_coherence(torch.tensor([[1.0, 1.0, 0.0]]))
    tensor(1.)
    """
    return gram_defect(W).abs().amax()


class SoftOrthogonality(LayerPenalty):
    """SO over the kernel matrices of a model's layers; a grouped convolution is a block-diagonal matrix.

    Args:
        coefficient: 1e-2 is SRIP's published one for CIFAR; the paper's for SO is not verified.
        options: those of `LayerPenalty`.

    >>> print(SoftOrthogonality().per_layer(torch.nn.Linear(3, 2)).skipped[0].note)
    not the weight of its layer
    """

    def __init__(self, coefficient: float = 1e-2, **options: Unpack[PenaltyOptions]) -> None:
        super().__init__(coefficient, **options)

    def value(self, layer: Layer) -> Tensor:
        return soft_orthogonality(layer.matrices)


class DoubleSoftOrthogonality(SoftOrthogonality):
    """DSO over the kernel matrices of a model's layers: SO at twice the coefficient, plus a constant.

    >>> model = torch.nn.Linear(3, 1, bias=False)
    >>> _ = torch.nn.init.constant_(model.weight, 0.0)
    >>> DoubleSoftOrthogonality(0.5)(model).detach()  # (|0 - I_3|² + |0 - I_1|²) / 2
    tensor(2.)
    """

    def value(self, layer: Layer) -> Tensor:
        return double_soft_orthogonality(layer.matrices)


class MutualCoherence(SoftOrthogonality):
    """MC over the kernel matrices of a model's layers: a step moves only the worst pair of rows or columns of each.

    >>> model = torch.nn.Linear(2, 2, bias=False)
    >>> _ = torch.nn.init.constant_(model.weight, 1.0)
    >>> MutualCoherence(1.0)(model).detach()  # G = [[2, 2], [2, 2]]
    tensor(2.)
    """

    def value(self, layer: Layer) -> Tensor:
        return mutual_coherence(layer.matrices)
