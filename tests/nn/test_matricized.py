"""The bias-free networks of seed 003: sizes, homogeneity, the product of matrices that they are said to be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from thalweg.curvature.matricization import matricize
from thalweg.nn import MatricizedNet

CASES: dict[str, tuple[tuple[int, ...], dict[str, Any], int]] = {  # shape, options, linear layers
    "linear head": ((1, 6, 6), {"convolutions": 2, "filters": 2}, 3),
    "hidden head": ((2, 6, 6), {"convolutions": 1, "filters": 2, "hidden": (5,)}, 3),
    "average": ((1, 6, 6), {"convolutions": 3, "filters": 2, "head": "average"}, 3),
    "whole": ((1, 6, 6), {"convolutions": 2, "filters": 2, "head": "whole", "pooling": "max"}, 2),
    "average pooling": ((1, 6, 6), {"convolutions": 2, "filters": 2, "pooling": "average"}, 3),
    "1-D": ((2, 9), {"convolutions": 2, "filters": 3, "kernel": 5, "head": "average"}, 2),
    "1-D pooled": ((1, 9), {"convolutions": 2, "filters": 3, "pooling": "max", "window": 3}, 3),
    "perceptron": ((1, 6, 6), {"convolutions": 0, "hidden": (4, 4, 4)}, 4),
}


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_product_of_matrices(case: str) -> None:
    shape, options, layers = CASES[case]
    net = MatricizedNet(shape, 3, generator=draw(), **options).double()
    x = torch.randn(1, *shape, generator=draw(1), dtype=torch.float64)
    product = matricize(net, x)
    assert len(product.T) == layers
    torch.testing.assert_close(product.output, net(x)[0], rtol=1e-12, atol=1e-14)  # rounding of float64


@pytest.mark.parametrize("case", CASES)
def test_scaling_every_weight_scales_the_output_by_a_power(case: str) -> None:
    shape, options, layers = CASES[case]
    net = MatricizedNet(shape, 3, generator=draw(), **options).double()
    x = torch.randn(4, *shape, generator=draw(1), dtype=torch.float64)
    before = net(x)
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(2.0)
    torch.testing.assert_close(net(x), before * 2.0**layers, rtol=1e-12, atol=0.0)  # powers of two: rounding of sums


def test_equal_generators_draw_equal_weights_of_torchs_default_range() -> None:
    a, b = (MatricizedNet((1, 8, 8), generator=draw(3)) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    first = next(a.parameters()).detach()
    assert 0.9 / 3 < float(first.abs().max()) <= 1 / 3  # 1/sqrt(fan_in), fan_in 9; 72 draws come that close to it


def test_the_published_perceptron_has_depth_plus_two_linear_layers() -> None:
    for depth in (1, 3, 5, 7, 10):
        net = MatricizedNet((1, 28, 28), convolutions=0, hidden=(16,) * (depth + 1))
        linear = [module for module in net if isinstance(module, nn.Linear)]
        assert [layer.out_features for layer in linear] == [16] * (depth + 1) + [10]
        assert len(linear) == depth + 2


@pytest.mark.parametrize(
    ("shape", "options", "told"),
    [
        ((1, 8, 8), {"kernel": 2}, "odd"),
        ((64,), {}, r"\(C, H, W\)"),
        ((1, 8, 8), {"head": "whole", "convolutions": 0}, "convolutions >= 1"),
        ((1, 8, 8), {"head": "average", "hidden": (4,)}, "no hidden"),
        ((1, 8, 8), {"head": "whole", "convolutions": 1, "pooling": "max"}, "there is none"),
        ((1, 8, 4), {"pooling": "max", "window": 5}, "from 1 to the map's smallest side, 4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(shape: tuple[int, ...], options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        MatricizedNet(shape, **options)
