r"""Weight decay: ridge in closed form, lasso by coordinate descent, and what torch's ``weight_decay`` is.

    ridge   R(w) = ‖w‖₂²        minimize  ‖y - b - X w‖² + α ‖w‖₂²             seed 004, "Weight decay"
    lasso   R(w) = ‖w‖₁         minimize  ‖y - b - X w‖²/(2N) + α ‖w‖₁

The lecture prints R only; the losses are scikit-learn's `Ridge` and `Lasso`, whose α its tables follow (the intercept b
is free: it stays near -2.3 at α = 1). `torch.optim.SGD(weight_decay=λ)` on a mean squared loss converges to ridge with
α = λN/2; AdamW does not, for its decay is not the gradient of any penalty on this loss.

The lecture adds α Σ ‖w‖₁ over *all* parameters to the loss: that decays biases and normalization gains too, its
subgradient steps never reach zero, and `torch.norm` is deprecated. The proximal step S(w, t) = sign(w) max(|w| - t, 0)
gives exact zeros: `torch.nn.functional.softshrink`, and `thalweg.regularize.L1` for networks.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["Fit", "alpha_of_weight_decay", "l1_norm", "lasso", "ridge", "weight_decay_of_alpha"]

Fit = tuple[Tensor, Tensor]
"""Coefficients w: (d,) and intercept b: ()."""


def alpha_of_weight_decay(weight_decay: float, N: int) -> float:
    """α = λN/2: the ridge whose minimum SGD with ``weight_decay`` λ reaches on the mean squared loss of N points.

    >>> alpha_of_weight_decay(0.5, 20)
    5.0
    """
    return weight_decay * N / 2


def weight_decay_of_alpha(alpha: float, N: int) -> float:
    """λ = 2α/N, the inverse of `alpha_of_weight_decay`.

    >>> weight_decay_of_alpha(5.0, 20)
    0.5
    """
    return 2 * alpha / N


def l1_norm(params: Iterable[Tensor]) -> Tensor:
    """``Σ |w|`` over all parameters: the lecture's loop over ``model.parameters()`` with `torch.norm(param, 1)`.

    >>> l1_norm([torch.tensor([1.0, -2.0]), torch.tensor(3.0)])
    tensor(6.)
    """
    norms = [torch.linalg.vector_norm(p, 1) for p in params]
    if not norms:
        raise ValueError("no parameters: the L1 norm needs at least one tensor")
    return torch.stack(norms).sum()


def _centred(X: Tensor, y: Tensor) -> Fit:
    if X.ndim != 2 or y.shape != X.shape[:1]:
        raise ValueError(f"X of shape {tuple(X.shape)} and y of {tuple(y.shape)}: expected (N, d) and (N,)")
    return X - X.mean(0), y - y.mean()


def ridge(X: Tensor, y: Tensor, alpha: float) -> Fit:
    """(w, b) that minimize ‖y - b - X w‖² + α ‖w‖²: the lecture's L2 regularizer, scikit-learn's `Ridge(alpha)`.

    Solved as least squares with √α E below the centred X, which spares the condition number of XᵀX.

    Args:
        X: (N, d) features, without a column of ones.
        y: (N,) targets.
        alpha: α >= 0.

    Raises:
        ValueError: negative α, or shapes that do not match.

    >>> X, y = torch.tensor([[-1.0], [1.0]]), torch.tensor([0.0, 4.0])
    >>> ridge(X, y, 2.0)  # w = 4/(2 + α)
    (tensor([1.]), tensor(2.))
    """
    if alpha < 0:
        raise ValueError(f"alpha is {alpha}: a penalty needs alpha >= 0")
    Xc, yc = _centred(X, y)
    below = alpha**0.5 * torch.eye(X.shape[1], dtype=X.dtype, device=X.device)
    stacked, target = torch.cat([Xc, below]), torch.cat([yc, yc.new_zeros(X.shape[1])])
    w = torch.linalg.lstsq(stacked, target.unsqueeze(-1)).solution.squeeze(-1)
    return w, y.mean() - X.mean(0) @ w


def lasso(X: Tensor, y: Tensor, alpha: float, *, tolerance: float = 1e-10, max_sweeps: int = 100_000) -> Fit:
    """(w, b) that minimize ‖y - b - X w‖²/(2N) + α ‖w‖₁: the lecture's L1 regularizer, scikit-learn's `Lasso(alpha)`.

    Cyclic coordinate descent wⱼ ← S(cⱼ - Σ_{i≠j} Kⱼᵢ wᵢ, α)/Kⱼⱼ with K = XᵀX/N, c = Xᵀy/N of the centred data and S the
    proximal step, until the optimality conditions hold: |cⱼ - (K w)ⱼ| <= α, with equality in sign where wⱼ ≠ 0.

    Args:
        X: (N, d) features, without a column of ones.
        y: (N,) targets.
        alpha: α > 0.
        tolerance: largest violation of the optimality conditions, relative to max |c|.
        max_sweeps: passes over the coordinates at most.

    Raises:
        ValueError: α that is not positive, or shapes that do not match.
        RuntimeError: the tolerance was not reached.

    >>> X, y = torch.tensor([[-1.0], [1.0]]), torch.tensor([0.0, 4.0])
    >>> lasso(X, y, 0.5), lasso(X, y, 2.0)  # w = 2 - α
    ((tensor([1.5000]), tensor(2.)), (tensor([0.]), tensor(2.)))
    """
    if alpha <= 0:
        raise ValueError(f"alpha is {alpha}: coordinate descent needs alpha > 0; without a penalty use ridge(X, y, 0)")
    Xc, yc = _centred(X, y)
    N = len(X)
    # Plain floats: d² products a sweep are far cheaper than d tensor operations for the lecture's handful of features.
    K: list[list[float]] = (Xc.mT @ Xc / N).tolist()
    c: list[float] = (Xc.mT @ yc / N).tolist()
    d, limit = len(c), tolerance * max(map(abs, c), default=0.0)
    w = [0.0] * d
    for _ in range(max_sweeps):
        for j in range(d):
            rest = c[j] - sum(K[j][i] * w[i] for i in range(d) if i != j)
            w[j] = _shrunk(rest, alpha) / K[j][j] if K[j][j] else 0.0
        slack = [c[j] - sum(K[j][i] * w[i] for i in range(d)) for j in range(d)]
        if max((_violation(s, v, alpha) for s, v in zip(slack, w, strict=True)), default=0.0) <= limit:
            found = X.new_tensor(w)
            return found, y.mean() - X.mean(0) @ found
    raise RuntimeError(
        f"lasso did not converge in {max_sweeps} sweeps: allow more, a larger tolerance or a larger alpha"
    )


def _shrunk(value: float, t: float) -> float:
    return max(value - t, 0.0) + min(value + t, 0.0)


def _violation(slack: float, w: float, alpha: float) -> float:
    """By how much the subgradient condition fails at one coordinate."""
    if w == 0:
        return max(abs(slack) - alpha, 0.0)
    return abs(slack - (alpha if w > 0 else -alpha))
