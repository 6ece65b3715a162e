r"""Gradient descent with both stop rules, and its stochastic estimate of the gradient.

    w⁽ᵏ⁾ = w⁽ᵏ⁻¹⁾ - ηₖ ∇Q(w⁽ᵏ⁻¹⁾)                          seed 004, "Gradient descent", algorithm
    stop when w hardly changes, or after so many steps
    ∇Q(w) ≈ 1/n Σⱼ ∇L_{iⱼ}(w)                              "Stochastic gradient descent", mini-batch

Every method of the lecture is an *update rule* here, a pure function (w, ∇Q, state) -> (w', state'), and `descend`
applies it step by step. In torch: `torch.optim.SGD`, and a loop of one's own, for torch has no stop rule. The lecture
counts steps from 1, so step k uses ηₖ; torch's schedulers give step k the value of k - 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

__all__ = ["Descent", "Form", "Gradient", "Rule", "State", "descend", "gradient_descent", "minibatch_gradient"]

Gradient = Callable[[Tensor], Tensor]
State = tuple[Tensor, ...]
Form = Literal["printed", "torch"]


class Rule(Protocol):
    """An update rule: the k-th step (k >= 1) from w with learning rate η; the state of the first step is ()."""

    def __call__(self, w: Tensor, gradient: Gradient, state: State, *, eta: float, k: int) -> tuple[Tensor, State]: ...


@dataclass(frozen=True)
class Descent:
    """A trajectory and why it ended.

    Attributes:
        w: ``(steps + 1, *shape)`` with the shape of w⁽⁰⁾, the start first.
        still: the weights hardly changed; otherwise the number of steps was reached.
        state: what the rule remembers after the last step.
    """

    w: Tensor
    still: bool
    state: State

    @property
    def steps(self) -> int:
        """Number of steps taken."""
        return len(self.w) - 1


def gradient_descent(
    w: Tensor, gradient: Gradient, state: State = (), *, eta: float, k: int = 1
) -> tuple[Tensor, State]:
    """One step w - η ∇Q(w): `torch.optim.SGD(params, lr=eta)`, to the last bit.

    >>> gradient_descent(torch.tensor([1.0]), lambda w: 2 * w, eta=0.25)[0]
    tensor([0.5000])
    """
    return w - eta * gradient(w), state


def descend(
    rule: Callable[..., tuple[Tensor, State]],
    gradient: Gradient,
    w: Tensor,
    *,
    eta: float | Callable[[int], float],
    steps: int,
    tolerance: float | None = None,
    **options: Any,
) -> Descent:
    """Apply an update rule until the weights hardly change or ``steps`` is reached: the lecture's two stop rules.

    Args:
        rule: `gradient_descent`, or one of `thalweg.lecture.inertia` and `thalweg.lecture.adaptive`.
        gradient: ∇Q, called by the rule at the points it needs.
        w: w⁽⁰⁾, of any shape; it is not changed.
        eta: the learning rate, or a function of the step's number k = 1, 2, ...
        steps: largest number of steps.
        tolerance: stop after a step with ‖w⁽ᵏ⁾ - w⁽ᵏ⁻¹⁾‖ <= tolerance; None never stops early.
        options: the rule's own (``alpha``, ``form``, ...).

    Raises:
        ValueError: a negative number of steps.

    >>> path = descend(gradient_descent, lambda w: 2 * w, torch.tensor([1.0]), eta=0.1, steps=20)
    >>> float(path.w[-1])  # (1 - 2η)²⁰
    0.011529...
    >>> descend(gradient_descent, lambda w: 2 * w, torch.tensor([1.0]), eta=0.1, steps=200, tolerance=1e-3).steps
    25
    """
    if steps < 0:
        raise ValueError(f"the number of steps is {steps}: it must be 0 or more")
    path, still = [w], False
    state: State = ()
    for k in range(1, steps + 1):
        rate = eta(k) if callable(eta) else eta
        new, state = rule(path[-1], gradient, state, eta=rate, k=k, **options)
        change = torch.linalg.vector_norm(new - path[-1])
        path.append(new)
        if tolerance is not None and bool(change <= tolerance):
            still = True
            break
    return Descent(torch.stack(path), still, state)


def minibatch_gradient(
    gradients: Callable[[Tensor, Tensor], Tensor],
    count: int,
    n: int,
    *,
    generator: torch.Generator | None = None,
    replacement: bool = False,
) -> Gradient:
    """An unbiased estimate of ∇Q = 1/l Σ ∇Lᵢ from n random summands, drawn anew at every call.

    With σ² the variance of ∇Lᵢ over i, the estimate's is σ²/n with replacement and σ²/n · (l - n)/(l - 1) without,
    which is how a shuffling `torch.utils.data.DataLoader` draws a batch; n = 1 is the lecture's SGD.

    Args:
        gradients: (w, indices: (n,)) -> ∇Lᵢ(w) of those summands, ``(n, *shape)``.
        count: l, the number of summands.
        n: size of the mini-batch.
        generator: draws the indices.
        replacement: draw each index independently.

    Raises:
        ValueError: a batch of less than one summand, or of more than there are without replacement.

    >>> x = torch.tensor([1.0, 2.0, 6.0])
    >>> full = minibatch_gradient(lambda w, i: 2 * (w - x[i, None]), 3, 3)
    >>> full(torch.zeros(1))
    tensor([-6.])
    """
    if n < 1 or (n > count and not replacement):
        raise ValueError(f"a mini-batch of {n} of {count} summands: it must hold between 1 and {count}")

    def estimate(w: Tensor) -> Tensor:
        at = generator.device if generator else w.device
        if replacement:
            indices = torch.randint(count, (n,), generator=generator, device=at)
        else:
            indices = torch.randperm(count, generator=generator, device=at)[:n]
        return gradients(w, indices.to(w.device)).mean(0)

    return estimate
