r"""Surfaces on which the methods of descent are watched.

    parabola        y = x²                                   seed 004, "Gradient descent", first example
    cosine surface  y = -(cos² x₁ + cos² x₂)²                second example
    Rosenbrock      y = (1 - x₁)² + 100 (x₂ - x₁²)²          a curved valley, standard in the field
    ravine          y = (x₁² + κ x₂²) / 2                    a quadratic of condition number κ

The cosine surface has ∂y/∂xᵢ = 2 (cos² x₁ + cos² x₂) sin 2xᵢ, minima -4 at multiples of π (Hessian 8 E), saddles at
(0, π/2) (Hessian diag(4, -4)) and maxima 0 at (π/2, π/2), where the Hessian vanishes too: descent crawls away from
there for any learning rate that is stable at the minima, and all starts on x₂ = π/2 stay on that line.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["cosine_gradient", "cosine_surface", "gradient_of", "parabola", "ravine", "rosenbrock"]


def gradient_of(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """∇f by autograd. A batch of points, (..., d) to (...), gives the gradient of each.

    >>> gradient_of(parabola)(torch.tensor([3.0]))
    tensor([6.])
    """

    def gradient(x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (g,) = torch.autograd.grad(f(x).sum(), x)
        return g

    return gradient


def parabola(x: Tensor) -> Tensor:
    """Parabola y = x² of x: (..., 1), as (...).

    >>> parabola(torch.tensor([3.0]))
    tensor(9.)
    """
    return x.square().sum(-1)


def cosine_surface(x: Tensor) -> Tensor:
    """The lecture's y = -(cos² x₁ + cos² x₂)² of x: (..., 2), as (...).

    >>> cosine_surface(torch.zeros(2))
    tensor(-4.)
    """
    return -x.cos().square().sum(-1).square()


def cosine_gradient(x: Tensor) -> Tensor:
    """∂y/∂xᵢ = 2 (cos² x₁ + cos² x₂) sin 2xᵢ of the cosine surface, x: (..., 2).

    >>> x = torch.tensor([0.3, 1.1])
    >>> torch.allclose(cosine_gradient(x), gradient_of(cosine_surface)(x))
    True
    """
    return 2 * x.cos().square().sum(-1, keepdim=True) * (2 * x).sin()


def rosenbrock(x: Tensor) -> Tensor:
    """Rosenbrock's y = (1 - x₁)² + 100 (x₂ - x₁²)² of x: (..., 2), as (...); its minimum is 0 at (1, 1).

    >>> rosenbrock(torch.ones(2))
    tensor(0.)
    """
    x1, x2 = x.unbind(-1)
    return (1 - x1).square() + 100 * (x2 - x1.square()).square()


def ravine(x: Tensor, *, condition: float = 100.0) -> Tensor:
    """Quadratic y = (x₁² + κ x₂²)/2 of x: (..., 2), as (...): gradient descent is stable below the learning rate 2/κ.

    >>> ravine(torch.ones(2), condition=9.0)
    tensor(5.)
    """
    x1, x2 = x.unbind(-1)
    return (x1.square() + condition * x2.square()) / 2
