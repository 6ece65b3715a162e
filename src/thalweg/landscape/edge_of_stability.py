r"""Edge of stability: the sharpness λ_max(H) beside 2 / lr, followed through training by a few products at a time.

Gradient descent raises λ_max(H) until it reaches 2 / lr and hovers just above (Cohen et al. 2021). Between two
measurements the top eigenvector turns little, so Rayleigh-Ritz on the Krylov space

    span{v, H v, …, H^{m-1} v},   v the eigenvector last found

needs m = 2 to 5 products where a fresh Lanczos run needs 20 to 50. The Ritz value never exceeds λ_max, and the
residual |H v - λ v| bounds its distance to the nearest eigenvalue; the first measurement starts at random and takes
more products. All later ones add a random vector of length 1/100 to v: no power of H leads from v to an eigenvector
that is orthogonal to it, were its eigenvalue to overtake.

The threshold is that of the whole data set's gradient, for torch.optim.SGD with momentum β, dampening τ and weight
decay γ (which adds γ to every eigenvalue)

    2 (1 + β) / (lr (1 - τ)) - γ          2 (1 + β) / (lr (1 + 2β)) - γ by Nesterov        Cohen et al. 2021, eq. 1

and 2 / lr for other optimizers. Adaptive methods have one for the preconditioned Hessian, and then only lr, not the
threshold, has a meaning here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from thalweg.curvature.evaluation import require_autograd
from thalweg.curvature.second_order import LossHead
from thalweg.landscape._objective import LossFunction, Objective, evaluate, few_samples

__all__ = ["EdgeOfStability", "SharpnessRow", "ritz_top", "stability_limit"]

FRESH = 0.01  # of the start is random: the residual it leaves is far below that of a moving Hessian


def ritz_top(product: Callable[[Tensor], Tensor], start: Tensor, products: int) -> tuple[float, Tensor, float]:
    """Largest Ritz value of a symmetric operator on the Krylov space of ``start``.

    Args:
        product: v -> H v.
        start: v: (P,), not zero.
        products: m >= 1, the dimension of the space.

    Returns:
        λ, its unit vector, and the residual |H v - λ v|.

    >>> H = torch.diag(torch.tensor([3.0, 1.0]))
    >>> value, vector, residual = ritz_top(H.mv, torch.ones(2), 2)
    >>> round(value, 4), residual < 1e-5
    (3.0, True)
    """
    basis: list[Tensor] = []
    images: list[Tensor] = []
    q = start.to(torch.promote_types(start.dtype, torch.float32))  # half precision keeps no basis orthogonal
    q = q / q.norm()
    for _ in range(products):
        basis.append(q)
        images.append(product(q.to(start.dtype)).to(q.dtype))
        Q = torch.stack(basis)
        size = images[-1].norm()
        q = images[-1] - Q.T @ (Q @ images[-1])
        q = q - Q.T @ (Q @ q)  # once more: the first pass leaves rounding errors along the basis
        if not q.norm() > 10 * torch.finfo(q.dtype).eps * size:
            break  # the space is invariant
        q = q / q.norm()
    W = torch.stack(images)
    T = Q @ W.T
    values, vectors = torch.linalg.eigh((T + T.T) / 2)
    y = vectors[:, -1]
    vector = y @ Q
    return float(values[-1]), vector, float((y @ W - values[-1] * vector).norm())


@dataclass(frozen=True)
class SharpnessRow:
    """One measurement of `EdgeOfStability`.

    Attributes:
        step: how many measurements came before.
        sharpness: λ, a lower bound of λ_max(H) that meets it as the residual falls.
        residual: |H v - λ v|: an eigenvalue lies within it.
        threshold: of stability, as `stability_limit` gives it: 2 / lr for plain gradient descent.
        products: Hessian-vector products spent.

    >>> SharpnessRow(step=0, sharpness=19.0, residual=0.1, threshold=20.0, products=3).ratio
    0.95
    """

    step: int
    sharpness: float
    residual: float
    threshold: float
    products: int

    @property
    def ratio(self) -> float:
        """Sharpness over threshold: about 1 at the edge of stability."""
        return self.sharpness / self.threshold


def stability_limit(optimizer: Optimizer) -> float:
    """The sharpness from which on a step of the optimizer diverges on a quadratic: the lowest of its groups.

    Returns:
        That of the module's formulas, infinite at lr = 0.

    >>> weight = nn.Parameter(torch.zeros(1))
    >>> stability_limit(torch.optim.SGD([weight], lr=0.1)), stability_limit(torch.optim.SGD([weight], 0.1, 0.5))
    (20.0, 30.0)
    """
    return min(_limit(group, isinstance(optimizer, torch.optim.SGD)) for group in optimizer.param_groups)


def _limit(group: dict[str, Any], sgd: bool) -> float:
    lr = float(group["lr"])
    if not lr:
        return float("inf")
    if not sgd:
        return 2 / lr
    beta = group["momentum"]
    share = 1 + 2 * beta if group["nesterov"] else 1 - group["dampening"] if beta else 1
    return float(2 * (1 + beta) / (lr * share) - group["weight_decay"])


class EdgeOfStability:
    """Follows λ_max(H) of a model in training.

    Args:
        model: measured at its current weights and in its current mode; its running statistics are not changed.
        loss_fn: ``loss_fn(output, target)``, the mean over the batch.
        data: a pair (inputs, targets), or batches that can be read more than once; fixed, for a curve of one function.
        optimizer: any; the group with the lowest threshold counts, at its present ``lr``.
        products: for each measurement, 2 to 5.
        first: for the first one, and wherever other parameters are trainable than before.
        generator: draws the starts, on the CPU; None is one of its own, so that training draws what it would without.

    Raises:
        ValueError: no products, no learning rate, no trainable parameter, a random output, a loss that is not twice
            differentiable.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> data = torch.tensor([[1.0, 0.0], [0.0, 0.5]]), torch.zeros(2, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> tracker = EdgeOfStability(model, nn.functional.mse_loss, data, optimizer)
    >>> row = tracker.measure()
    >>> round(row.sharpness, 4), row.threshold  # H = diag(1, 1/4)
    (1.0, 20.0)
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        data: Any,
        optimizer: Optimizer,
        *,
        products: int = 3,
        first: int = 30,
        generator: torch.Generator | None = None,
    ) -> None:
        if products < 1 or first < 1:
            raise ValueError(f"products={products}, first={first}: at least one product per measurement expected")
        if not all("lr" in group for group in optimizer.param_groups):
            raise ValueError("the optimizer has a group without lr: the threshold needs one")
        require_autograd()
        self._objective = Objective(model, loss_fn, data)
        x, y = few_samples(data, self._objective.theta.device)
        if isinstance(z := evaluate(model, {}, x), Tensor):
            LossHead(lambda z: loss_fn(z, y), z).check_curvature()
        self.optimizer = optimizer
        self.rows: list[SharpnessRow] = []
        self._products, self._first = products, first
        self._generator = torch.Generator().manual_seed(0) if generator is None else generator
        self._found: tuple[dict[str, torch.Size], Tensor] | None = None

    def measure(self) -> SharpnessRow:
        """Measure at the current weights, keep the row and return it.

        Raises:
            ValueError: the loss is not finite, as after a divergence.
        """
        objective = self._objective.at_present()
        w, budget = objective.theta, self._products
        start = torch.randn(w.shape, generator=self._generator, dtype=w.dtype).to(w.device)
        layout = {name: param.shape for name, param in objective.params.items()}
        if self._found is None or self._found[0] != layout:
            budget = self._first
        else:
            start = self._found[1].to(start) + FRESH * start / start.norm()
        used = 0
        multiply = objective.products(w)

        def product(v: Tensor) -> Tensor:
            nonlocal used
            used += 1
            Hv = multiply(v)
            if not bool(torch.isfinite(Hv).all()):
                raise ValueError("the Hessian is not finite at these weights: stop measuring when training diverges")
            return Hv

        sharpness, vector, residual = ritz_top(product, start, budget)
        self._found = layout, vector
        self.rows.append(SharpnessRow(len(self.rows), sharpness, residual, stability_limit(self.optimizer), used))
        return self.rows[-1]
