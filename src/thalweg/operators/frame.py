r"""The rows of a layer as a frame: bounds, dual frame, and the input recovered from the output (seed 002).

    A|z|² <= Σᵢ |<z, wᵢ>|² = |W z|² <= B|z|²  for all z ∈ Rⁿ       A, B: extreme eigenvalues of V = WᵀW
    z = Σᵢ <z, wᵢ> V⁻¹wᵢ = V⁻¹Wᵀ (W z)                             V⁻¹wᵢ: the dual frame, with bounds 1/B and 1/A

Rows that do not span Rⁿ are no frame: A = 0. They are one on their own span, and there V⁻¹ is read as the
pseudo-inverse V⁺: what is then recovered is the projection of the input on that span.

Deviations from the seed. Its slide names B/A the condition number of W; it is that of V, and that of W is its square
root. Its V ∈ R^{m×m} must be n x n. Its "the layer loses no information" is about the linear map, and needs m >= n.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from thalweg.operators.bidiagonalization import extreme_singular_values
from thalweg.operators.spectrum import known_singular_values, negligible

if TYPE_CHECKING:
    from thalweg.operators.layer import LayerOperator

__all__ = ["FrameBounds", "dual_frame", "frame_bounds", "reconstruct"]

DENSE = 2**24  # numbers in a matrix that may be inverted as a whole
SMALL = 512  # min(m, n) below which that is faster than solving by products


@dataclass(frozen=True)
class FrameBounds:
    """Bounds of the frame inequality on inputs.

    Attributes:
        lower: A; 0 if the rows do not span the inputs.
        upper: B.
        condition: B/A, the condition number of WᵀW; infinite if A = 0.
        rank: of W: how many dimensions of the input reach the output; None if unknown, below min(m, n).
        lost: n - rank: how many dimensions of the input do not; None with ``rank``.
        converged: False if A is only known to be at most ``lower``.
    """

    lower: float
    upper: float
    condition: float
    rank: int | None
    lost: int | None = None
    converged: bool = True

    @property
    def layer_condition(self) -> float:
        """Condition number of W itself, √(B/A)."""
        return math.sqrt(self.condition)


def frame_bounds(op: LayerOperator) -> FrameBounds:
    """A and B of the frame inequality, the condition of V, and the rank of W.

    Exact where all singular values are at hand; elsewhere by bidiagonalization, with a warning if the lower bound did
    not converge. Singular values that rounding hides count as zero (`thalweg.operators.negligible`): for a dense
    decomposition up to max(m, n)·ε times the largest, in float32 and for n = 8192 up to 1e-3. Take
    ``LayerOperator.of(..., weight=module.weight.double())`` to look below.

    Returns:
        The bounds; all NaN if the weight is not finite.

    >>> from thalweg.operators.layer import LayerOperator
    >>> bounds = LayerOperator.of(torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 1.0]])).frame_bounds()
    >>> [round(value, 4) for value in (bounds.lower, bounds.upper, bounds.condition, bounds.layer_condition)]
    [2.0, 4.0, 2.0, 1.4142]
    >>> LayerOperator.of(torch.tensor([[2.0, 0.0]])).frame_bounds()
    FrameBounds(lower=0.0, upper=4.0, condition=inf, rank=1, lost=1, converged=True)
    """
    m, n = op.shape
    if not op.weight.isfinite().all():
        return FrameBounds(math.nan, math.nan, math.nan, None, None)
    sigma = known_singular_values(op)
    converged, rank = True, None
    if sigma is not None:
        largest, smallest = float(sigma[0]), float(sigma[-1])
        rank = int((sigma > negligible(op) * largest).sum())
        spans = rank == n
    else:
        found = extreme_singular_values(op, largest=1, smallest=1)
        largest, smallest, converged = float(found.largest[0]), float(found.smallest[-1]), found.converged
        nonzero = smallest > negligible(op, by_products=True) * largest
        rank = min(m, n) if nonzero and converged else None
        spans = nonzero and m >= n
        converged = converged or not spans  # A = 0 needs no spectrum where m < n
        if not converged:
            warnings.warn(
                f"the smallest singular value of {op} has not converged after {found.vectors} vectors: it is at most "
                f"{smallest:.3g}, and the lower frame bound at most its square; where there is time and memory, "
                "torch.linalg.svdvals(op.dense()) decides",
                stacklevel=3,
            )
    lower, upper = smallest**2 if spans else 0.0, largest**2
    condition = upper / lower if lower else math.inf
    return FrameBounds(lower, upper, condition, rank, None if rank is None else n - rank, converged)


def dual_frame(op: LayerOperator) -> Tensor:
    """The canonical dual frame of the rows, V⁺wᵢ: (m, n), the transpose of the pseudo-inverse of W.

    Raises:
        ValueError: a layer too large to be inverted as a whole, or a weight that is not finite.

    >>> from thalweg.operators.layer import LayerOperator
    >>> mercedes = torch.tensor([[0.0, 1.0], [-(3**0.5) / 2, -0.5], [3**0.5 / 2, -0.5]])
    >>> torch.allclose(dual_frame(LayerOperator.of(mercedes)), mercedes / 1.5)  # tight: V = 1.5 I
    True
    """
    _check_finite(op)
    if op.shape[0] * op.shape[1] > DENSE:
        raise ValueError(
            f"{op} is too large for its dual frame as a matrix: use reconstruct, which needs products only"
        )
    with torch.autocast(device_type=op.weight.device.type, enabled=False):
        inverse: Tensor = torch.linalg.pinv(op.widened().dense())
    return inverse.mT


@torch.no_grad()
def reconstruct(op: LayerOperator, y: Tensor) -> Tensor:
    """The input of an output: z = Σᵢ yᵢ V⁺wᵢ, for y = W z.

    If the rows span the inputs (``frame_bounds().lost == 0``) this is z itself, else its projection on their span. For
    a y that is no output of the layer it is the least-squares solution of least norm. Small layers are inverted, large
    ones solved by conjugate gradients on V with products only (CGLS), with a warning if they stop short.

    Args:
        op: the layer.
        y: ``(*batch, *output_shape)``, without the bias.

    Returns:
        ``(*batch, *input_shape)``, computed in float32 or wider, in the dtype of ``y``.

    Raises:
        ValueError: a weight that is not finite, or a ``y`` of another shape.

    >>> from thalweg.operators.layer import LayerOperator
    >>> op = LayerOperator.of(torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))
    >>> reconstruct(op, op.matvec(torch.tensor([3.0, 5.0])))
    tensor([3., 5.])
    """
    _check_finite(op)
    split = y.ndim - len(op.output_shape)
    if split < 0 or y.shape[split:] != op.output_shape:
        raise ValueError(f"{op} gives (*batch, {', '.join(map(str, op.output_shape))}), got {tuple(y.shape)}")
    wide = op.widened(y.dtype).widened()
    outputs = y.to(wide.weight.dtype)
    with torch.autocast(device_type=y.device.type, enabled=False):
        if min(op.shape) <= SMALL and op.shape[0] * op.shape[1] <= DENSE:
            batch = y.shape[:split]
            z = (outputs.reshape(*batch, -1) @ dual_frame(wide)).reshape(*batch, *op.input_shape)
        else:
            z = _least_squares(wide, outputs)
    return z.to(y.dtype)


def _least_squares(op: LayerOperator, y: Tensor, *, max_steps: int = 1000) -> Tensor:
    """CGLS (Hestenes, Stiefel 1952; Björck 1996, algorithm 7.4.1), every sample of the batch by itself."""
    axes = tuple(range(-len(op.input_shape), 0))
    out_axes = tuple(range(-len(op.output_shape), 0))
    tolerance = 10 * torch.finfo(y.dtype).eps
    r = y
    s = p = op.rmatvec(y)
    z, gamma = torch.zeros_like(s), s.square().sum(axes, keepdim=True)
    goal = tolerance**2 * gamma
    for _ in range(max_steps):
        q = op.matvec(p)
        step = _quotient(gamma, q.square().sum(out_axes, keepdim=True))
        z, r = z + step * p, r - step.reshape(*step.shape[: -len(axes)], *[1] * len(out_axes)) * q
        s = op.rmatvec(r)
        before, gamma = gamma, s.square().sum(axes, keepdim=True)
        if bool((gamma <= goal).all()):
            return z
        p = s + _quotient(gamma, before) * p
    worst = float(_quotient(gamma.sqrt(), goal.sqrt()).max()) * tolerance
    warnings.warn(
        f"the input of {op} was not recovered in {max_steps} steps: |Wᵀ(y - W z)| is {worst:.1e} of |Wᵀy|; the layer "
        "is ill-conditioned",
        stacklevel=5,  # past reconstruct, its no_grad and the method
    )
    return z


def _quotient(a: Tensor, b: Tensor) -> Tensor:
    """The quotient a / b, and 0 where b is: a sample that is done, or zero."""
    return torch.where(b > 0, a / b.clamp_min(torch.finfo(b.dtype).tiny), 0)


def _check_finite(op: LayerOperator) -> None:
    if not op.weight.isfinite().all():
        raise ValueError(f"the weight of {op} is not finite: nothing can be recovered through it")
