r"""Momentum and Nesterov's method, in the lecture's form and in torch's.

                 lecture (seed 004, "Modifications of gradient descent")     torch.optim.SGD
    momentum     hₖ = α hₖ₋₁ + ηₖ ∇Q(w),  w' = w - hₖ                         b' = α b + ∇Q(w),  w' = w - ηₖ b'
    Nesterov     w' = w - α hₖ₋₁ - ηₖ ∇Q(w - α hₖ₋₁)                          w' = w - ηₖ (∇Q(w) + α b')

For constant η momentum is the same in both (h = η b); under a schedule it is not, because h keeps the rate at which
each gradient came and b takes the rate of today. Nesterov's trajectories differ even for constant η: torch stores the
look-ahead point w - α h of the lecture's iteration. The lecture speaks of averaging, but h is a sum: along a constant
gradient the step grows to η/(1 - α).
"""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg.lecture.descent import Form, Gradient, State

__all__ = ["look_ahead", "momentum", "nesterov"]


def momentum(
    w: Tensor,
    gradient: Gradient,
    state: State = (),
    *,
    eta: float,
    k: int = 1,
    alpha: float = 0.9,
    form: Form = "torch",
) -> tuple[Tensor, State]:
    """One step with momentum; the state is (h,) as printed and (b,) in torch's form.

    torch: `torch.optim.SGD(params, lr=eta, momentum=alpha)`. The two forms are equal for constant η.

    >>> w, (h,) = momentum(torch.tensor([1.0]), lambda w: 2 * w, eta=0.1, form="printed")
    >>> w, h
    (tensor([0.8000]), tensor([0.2000]))
    """
    (h,) = state or (torch.zeros_like(w),)
    if form == "printed":
        h = alpha * h + eta * gradient(w)
        return w - h, (h,)
    h = alpha * h + gradient(w)
    return w - eta * h, (h,)


def nesterov(
    w: Tensor,
    gradient: Gradient,
    state: State = (),
    *,
    eta: float,
    k: int = 1,
    alpha: float = 0.9,
    form: Form = "torch",
) -> tuple[Tensor, State]:
    """One step of Nesterov's method; the state is (h,) as printed and (b,) in torch's form.

    torch: `torch.optim.SGD(params, lr=eta, momentum=alpha, nesterov=True)`, whose weights are the `look_ahead` points
    of the printed iteration when η is constant.

    >>> quadratic = lambda w: 2 * w
    >>> printed, state = nesterov(torch.tensor([1.0]), quadratic, eta=0.1, form="printed")
    >>> stored, _ = nesterov(torch.tensor([1.0]), quadratic, eta=0.1)
    >>> torch.equal(stored, look_ahead(printed, state))
    True
    """
    (h,) = state or (torch.zeros_like(w),)
    if form == "printed":
        h = alpha * h + eta * gradient(w - alpha * h)
        return w - h, (h,)
    g = gradient(w)
    h = alpha * h + g
    return w - eta * (g + alpha * h), (h,)


def look_ahead(w: Tensor, state: State, *, alpha: float = 0.9) -> Tensor:
    """The point w - α h where the printed Nesterov step takes its gradient.

    >>> look_ahead(torch.tensor([1.0]), (torch.tensor([0.5]),))
    tensor([0.5500])
    """
    return w - alpha * state[0]
