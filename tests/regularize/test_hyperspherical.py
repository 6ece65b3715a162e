"""Hyperspherical energy against sums over pairs written out, and the lengths that must not matter."""

import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from thalweg.regularize import HypersphericalEnergy, hyperspherical_energy

KINDS = list(itertools.product((0, 1, 2), (False, True), (False, True)))
kinds = pytest.mark.parametrize(("power", "angular", "half_space"), KINDS)


def filters(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_pairs(W, power, angular, half_space):
    """The definition with one loop over the pairs of 2N or N vectors."""
    vectors = [w / w.norm() for w in W]
    if half_space:
        vectors += [-w for w in vectors]
    energies = []
    for a, b in itertools.combinations(vectors, 2):
        chord = float((a - b).norm())
        d = 2 * math.asin(min(chord / 2, 1.0)) / math.pi if angular else chord
        energies.append(-math.log(d) if power == 0 else d**-power)
    return sum(energies) / len(energies)


@kinds
@settings(max_examples=20)
@given(n=st.integers(2, 6), d=st.integers(2, 6), seed=st.integers(0, 1000))
def test_definition(power, angular, half_space, n, d, seed):
    W = filters(n, d, seed)
    directions = nn.functional.normalize(W)
    cosines = (directions @ directions.T).abs()
    assume(cosines.fill_diagonal_(0).max() < 1 - 1e-6)  # nearer to each other pairs have the energy of d² = 1e-6
    options = {"power": power, "angular": angular, "half_space": half_space}
    # arccos loses digits near 0 and π: 1e-16 / angle², with angles of 1e-3 and more
    assert float(hyperspherical_energy(W, **options)) == pytest.approx(by_pairs(W, **options), rel=1e-7, abs=1e-9)


@kinds
@settings(max_examples=20)
@given(seed=st.integers(0, 1000))
def test_lengths_of_filters_and_rotations_of_the_input_do_not_matter(power, angular, half_space, seed):
    W = filters(5, 4, seed)
    options = {"power": power, "angular": angular, "half_space": half_space}
    lengths = torch.exp(filters(5, 1, seed + 1) * 3)
    Q = torch.linalg.qr(filters(4, 4, seed + 2)).Q
    value = hyperspherical_energy(W, **options)
    torch.testing.assert_close(hyperspherical_energy(lengths * W, **options), value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(hyperspherical_energy(W @ Q, **options), value, rtol=1e-7, atol=1e-9)


@kinds
def test_the_gradient_is_tangent_to_the_sphere(power, angular, half_space):
    W = filters(5, 4, 0).requires_grad_()
    (g,) = torch.autograd.grad(hyperspherical_energy(W, power=power, angular=angular, half_space=half_space), W)
    assert g.norm() > 1e-3
    torch.testing.assert_close((g * W).sum(1), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_half_space_form_does_not_see_the_sign_of_a_filter():
    W = filters(5, 4, 0)
    flipped = W * torch.tensor([[1.0], [-1.0], [1.0], [-1.0], [-1.0]])
    half = [hyperspherical_energy(w, power=2, half_space=True) for w in (W, flipped)]
    torch.testing.assert_close(half[0], half[1], rtol=1e-12, atol=0)
    full = [hyperspherical_energy(w, power=2) for w in (W, flipped)]
    assert abs(full[0] - full[1]) > 1e-2


def test_minimizing_spreads_three_filters_of_the_plane_evenly():
    layer = nn.Linear(2, 3, bias=False).double()
    layer.weight.data = torch.tensor([[1.0, 0.0], [1.0, 0.5], [0.7, -0.6]], dtype=torch.float64)
    penalty = HypersphericalEnergy(1.0, power=1, output=())
    for _ in range(2000):
        penalty.step_(layer, 0.2)
    w = nn.functional.normalize(layer.weight.detach())
    cosines = (w @ w.T)[[0, 0, 1], [1, 2, 2]]  # the Mercedes frame: -1/2
    torch.testing.assert_close(cosines, torch.full((3,), -0.5, dtype=torch.float64), rtol=1e-6, atol=0)


@kinds
def test_filters_of_zeros_are_left_out_and_named(power, angular, half_space):
    options = {"power": power, "angular": angular, "half_space": half_space}
    W = filters(4, 3, 0)
    padded = torch.cat([W[:2], torch.zeros(2, 3, dtype=torch.float64), W[2:]])
    torch.testing.assert_close(hyperspherical_energy(padded, **options), hyperspherical_energy(W, **options))
    layer = nn.Linear(3, 6, bias=False).double()
    layer.weight.data = padded
    penalty = HypersphericalEnergy(1.0, **options)
    penalty(layer).backward()
    assert (layer.weight.grad[2:4] == 0).all()
    assert penalty.per_layer(layer)[0].note == "2 filters of zeros left out"


@kinds
def test_equal_filters_give_a_large_finite_energy(power, angular, half_space):
    W = torch.ones(3, 4, requires_grad=True)
    value = hyperspherical_energy(W, power=power, angular=angular, half_space=half_space)
    (g,) = torch.autograd.grad(value, W)
    assert value > 2
    assert value.isfinite()
    assert g.isfinite().all()


def test_pairs_are_of_one_group():
    W = torch.stack([filters(3, 4, 0), filters(3, 4, 1)])
    expected = (hyperspherical_energy(W[0], power=2) + hyperspherical_energy(W[1], power=2)) / 2
    torch.testing.assert_close(hyperspherical_energy(W, power=2), expected, rtol=1e-12, atol=0)
    depthwise = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.Linear(4, 2, bias=False))
    table = HypersphericalEnergy().per_layer(depthwise)
    assert [row.note for row in table.skipped] == ["one filter in a group: there is no pair to repel"]


def test_published_coefficients():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Linear(4, 5, bias=False), nn.Linear(5, 2, bias=False))

    def coefficients(**options):
        return {row.layer: row.coefficient for row in HypersphericalEnergy(**options).per_layer(model)}

    assert coefficients() == {"0.weight": 1, "1.weight": 1, "2.weight": 10}
    assert coefficients(angular=True) == {"0.weight": 1, "1.weight": 1, "2.weight": 10}
    assert coefficients(angular=True, power=2) == {"0.weight": 0.1, "1.weight": 0.1, "2.weight": 1}
    assert coefficients(output="0") == {"0.weight": 10, "1.weight": 1, "2.weight": 1}
    assert coefficients(output=["0", "1.weight"]) == {"0.weight": 10, "1.weight": 10, "2.weight": 1}
    assert coefficients(output=()) == {"0.weight": 1, "1.weight": 1, "2.weight": 1}
    with pytest.raises(ValueError, match=r"HypersphericalEnergy\(output=...\): no weight of the model matches 'head'"):
        coefficients(output="head")


def test_the_output_layer_stays_in_full_space():
    model = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Linear(5, 3, bias=False)).double()
    rows = HypersphericalEnergy(power=2, half_space=True).per_layer(model)
    for row, layer, half_space in zip(rows, model, (True, False), strict=True):
        expected = hyperspherical_energy(layer.weight.detach(), power=2, half_space=half_space)
        assert row.value == pytest.approx(float(expected), rel=1e-12)


def test_errors():
    with pytest.raises(ValueError, match="power=3"):
        HypersphericalEnergy(power=3)
    with pytest.raises(ValueError, match="power=3"):
        hyperspherical_energy(torch.eye(2), power=3)
