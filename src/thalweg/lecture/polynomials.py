r"""The lecture's polynomial, the fits of degree 1 to 9 and its printed tables.

    f(x) = x³ - 4x² + 3x - 2,  y = f(x) + noise N(0, 0.25)                 seed 004, "Regularization"
    ŷ = Σⱼ wⱼ xʲ,  w = argmin Σᵢ (ŷᵢ - yᵢ)²

The lecture gives neither the range of x nor the number of points. The tables fit x ~ U(-1/2, 1), 20 to 30 points, and
0.25 as the standard deviation of the noise; these are inferences. Every printed row is about -2 at x = 1, as f(1) is,
except degree 9, which gives +370.5: its coefficient 186.1 has lost a minus sign (with it: -1.7). In torch:
`torch.linalg.lstsq`; there is no polynomial fit.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "PRINTED_FITS",
    "PRINTED_RIDGE",
    "F",
    "corrected_fits",
    "evaluate",
    "fit_polynomial",
    "noisy_sample",
    "polynomial_features",
]

F = (-2.0, 3.0, -4.0, 1.0)
"""Coefficients of f, the constant first, as in the lecture's tables."""

PRINTED_FITS = {
    1: (-2.5, 1.6),
    3: (-1.9, 3.1, -4.1, 1.0),
    5: (-1.9, 3.1, -3.7, 0.5, -1.3, 1.4),
    7: (-1.8, 1.8, -7.5, 18.5, 8.4, -51.4, 20.4, 9.8),
    9: (-1.6, 1.5, -19.2, 36.8, 127.6, -280.0, 186.1, 653.5, -352.4, 18.2),
}
"""Degree -> coefficients, as printed: the sign of 186.1 is wrong (`corrected_fits`)."""

PRINTED_RIDGE = {
    0.0: (-1.8, 1.8, -7.5, 18.5, 8.4, -51.4, 20.4, 9.8),
    0.01: (-1.9, 3.1, -3.3, 0.5, -1.1, -0.1, 0.1, 0.8),
    0.1: (-2.1, 2.7, -2.0, 0.2, -0.7, -0.1, -0.1, 0.1),
    1.0: (-2.3, 1.4, -0.4, 0.1, -0.2, -0.1, -0.2, -0.1),
}
"""Ridge α -> coefficients of degree 7, as printed."""


def corrected_fits() -> dict[int, tuple[float, ...]]:
    """`PRINTED_FITS` with the minus sign that the row of degree 9 has lost.

    >>> x = torch.ones(1)
    >>> [round(float(evaluate(torch.tensor(table[9]), x)), 1) for table in (PRINTED_FITS, corrected_fits())]
    [370.5, -1.7]
    """
    nine = list(PRINTED_FITS[9])
    nine[6] = -nine[6]
    return {**PRINTED_FITS, 9: tuple(nine)}


def noisy_sample(
    count: int,
    *,
    sigma: float = 0.25,
    low: float = -0.5,
    high: float = 1.0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """x: (count,) uniform on (low, high) in increasing order and y = f(x) + N(0, σ²).

    >>> x, y = noisy_sample(5, sigma=0.0, generator=torch.Generator().manual_seed(0))
    >>> torch.allclose(y, x**3 - 4 * x**2 + 3 * x - 2)
    True
    """
    device = generator.device if generator else None
    x = torch.rand(count, generator=generator, dtype=dtype, device=device).mul(high - low).add(low).sort().values
    noise = torch.randn(count, generator=generator, dtype=dtype, device=device)
    return x, evaluate(x.new_tensor(F), x) + sigma * noise


def polynomial_features(x: Tensor, degree: int) -> Tensor:
    """1, x, ..., x^degree of x: (N,), as (N, degree + 1): `torch.vander(x, degree + 1, increasing=True)`.

    Raises:
        ValueError: a negative degree.

    >>> polynomial_features(torch.tensor([2.0, 3.0]), 2)
    tensor([[1., 2., 4.],
            [1., 3., 9.]])
    """
    if degree < 0:
        raise ValueError(f"a polynomial of degree {degree}: the degree must be 0 or more")
    return x.unsqueeze(-1) ** torch.arange(degree + 1, device=x.device, dtype=x.dtype)


def fit_polynomial(x: Tensor, y: Tensor, degree: int) -> Tensor:
    """w: (degree + 1,), the least-squares polynomial through x, y: (N,).

    Raises:
        ValueError: fewer points than coefficients, which leaves the fit undetermined.

    >>> x = torch.arange(4, dtype=torch.float64)
    >>> fit_polynomial(x, 1 + 2 * x**2, 2).round(decimals=9)
    tensor([1., 0., 2.], dtype=torch.float64)
    """
    if len(x) <= degree:
        raise ValueError(f"{len(x)} points do not determine a polynomial of degree {degree}: take {degree + 1} or more")
    w: Tensor = torch.linalg.lstsq(polynomial_features(x, degree), y.unsqueeze(-1)).solution.squeeze(-1)
    return w


def evaluate(w: Tensor, x: Tensor) -> Tensor:
    """Σⱼ wⱼ xʲ for coefficients w: (degree + 1,) at x: (N,).

    >>> evaluate(torch.tensor([1.0, 0.0, 2.0]), torch.tensor([3.0]))
    tensor([19.])
    """
    return polynomial_features(x, len(w) - 1) @ w
