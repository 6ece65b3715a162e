"""The surfaces against SciPy's, finite differences and their critical points."""

import math

import pytest
import torch
from scipy.optimize import rosen, rosen_der

from thalweg.lecture import cosine_gradient, cosine_surface, descend, gradient_descent, gradient_of, ravine, rosenbrock

DOUBLE = torch.float64
POINTS = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)


def test_rosenbrock_is_scipys():
    for x in POINTS:
        assert float(rosenbrock(x)) == pytest.approx(rosen(x.numpy()), rel=1e-12)  # rounding
        gradient = torch.from_numpy(rosen_der(x.numpy()))
        torch.testing.assert_close(gradient_of(rosenbrock)(x), gradient, rtol=1e-10, atol=1e-10)  # cancellation


def test_the_gradient_of_the_cosine_surface_by_differences():
    h = 1e-5
    shifts = h * torch.eye(2, dtype=DOUBLE)
    differences = torch.stack(
        [(cosine_surface(POINTS + s) - cosine_surface(POINTS - s)) / (2 * h) for s in shifts], dim=-1
    )
    torch.testing.assert_close(cosine_gradient(POINTS), differences, rtol=0, atol=1e-8)  # h² · third derivative


@pytest.mark.parametrize(
    ("point", "value", "hessian"),
    [
        ((0, 0), -4, ((8, 0), (0, 8))),
        ((math.pi, -math.pi), -4, ((8, 0), (0, 8))),
        ((0, math.pi / 2), -1, ((4, 0), (0, -4))),
        ((math.pi / 2, math.pi / 2), 0, ((0, 0), (0, 0))),
    ],
)
def test_critical_points_of_the_cosine_surface(point, value, hessian):
    x = torch.tensor(point, dtype=DOUBLE)
    # π is rounded: everything is exact to 1e-15 times derivatives of order 10
    assert float(cosine_surface(x)) == pytest.approx(value, abs=1e-14)
    assert float(cosine_gradient(x).abs().max()) < 1e-14
    found = torch.autograd.functional.hessian(cosine_surface, x)
    torch.testing.assert_close(found, torch.tensor(hessian, dtype=DOUBLE), rtol=0, atol=1e-14)


def test_descent_crawls_away_from_the_degenerate_maximum():
    near, far = torch.tensor([[math.pi / 2 - 0.01, math.pi / 2 - 0.01], [0.7, 0.7]], dtype=DOUBLE)
    steps = [
        descend(gradient_descent, cosine_gradient, x, eta=0.05, steps=100_000, tolerance=1e-8).steps
        for x in (near, far)
    ]
    assert steps[0] > 50 * steps[1]


def test_the_ravine():
    hessian = torch.autograd.functional.hessian(lambda x: ravine(x, condition=50.0), POINTS[0])
    assert torch.equal(hessian, torch.diag(torch.tensor([1.0, 50.0], dtype=DOUBLE)))
