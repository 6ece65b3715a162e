"""Draws against torch.nn.init, gains against SciPy's quadrature, the signal's power against sampled networks."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import nn
from torch.nn.functional import elu, leaky_relu, relu, selu

from thalweg.lecture import backward_gain, forward_gain, gaussian_mean, glorot, kaiming, lecun, signal_power

DOUBLE = torch.float64


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (glorot, nn.init.xavier_uniform_),
        (kaiming, lambda w, generator: nn.init.kaiming_normal_(w, nonlinearity="relu", generator=generator)),
        (
            lambda m, n, **kw: lecun(m, n, form="printed", **kw),
            lambda w, generator: nn.init.kaiming_uniform_(w, a=math.sqrt(5), generator=generator),
        ),
    ],
    ids=["glorot", "kaiming", "printed lecun"],
)
def test_draws_are_torchs(ours, theirs, dtype):
    expected = theirs(torch.empty(30, 20, dtype=dtype), generator=draw())
    # the same generator in the same order; the bound is computed in another order, by one rounding of float64
    torch.testing.assert_close(ours(20, 30, dtype=dtype, generator=draw()), expected, rtol=1e-15, atol=0)


def test_the_default_of_linear_is_the_printed_lecun():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weight = nn.Linear(20, 30).weight.detach()
    assert torch.allclose(lecun(20, 30, form="printed", generator=draw()), weight, rtol=1e-6, atol=0)  # float32


@pytest.mark.parametrize(
    ("name", "weights", "variance"),
    [
        ("printed", lambda: lecun(400, 500, form="printed", generator=draw(), dtype=DOUBLE), 1 / (3 * 400)),
        ("paper", lambda: lecun(400, 500, generator=draw(), dtype=DOUBLE), 1 / 400),
        ("glorot", lambda: glorot(400, 500, generator=draw(), dtype=DOUBLE), 2 / 900),
        ("kaiming", lambda: kaiming(400, 500, generator=draw(), dtype=DOUBLE), 2 / 400),
        ("kaiming, gain 1", lambda: kaiming(400, 500, gain=1.0, generator=draw(), dtype=DOUBLE), 1 / 400),
    ],
)
def test_variances(name, weights, variance):
    W = weights()
    assert W.shape == (500, 400)
    # 200000 draws: the variance of a normal sample scatters by √(2/200000) = 0.3 %; five of that
    assert float(W.var()) == pytest.approx(variance, rel=0.016)
    assert abs(float(W.mean())) < 5 * math.sqrt(variance / W.numel())


ACTIVATIONS = {
    "relu": relu,
    "leaky_relu": leaky_relu,
    "elu": elu,
    "selu": selu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def slope(f, z):
    z = torch.tensor(z, dtype=DOUBLE, requires_grad=True)
    return torch.autograd.grad(f(z), z)[0].item()


@pytest.mark.parametrize("f", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_gains_by_independent_quadrature(f):
    def density(z):
        return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    forward = quad(lambda z: f(torch.tensor(z, dtype=DOUBLE)).item() ** 2 * density(z), -12, 12, points=[0])[0]
    backward = quad(lambda z: slope(f, z) ** 2 * density(z), -12, 12, points=[0])[0]
    # QUADPACK's own tolerance is 1.5e-8
    assert forward_gain(f) == pytest.approx(forward**-0.5, rel=1e-7)
    assert backward_gain(f) == pytest.approx(backward**-0.5, rel=1e-7)


@pytest.mark.parametrize(
    ("name", "gain", "agrees"),
    [("relu", 2**0.5, True), ("leaky_relu", (2 / 1.0001) ** 0.5, True), ("tanh", 1.5925, False), ("selu", 1.0, False),
     ("sigmoid", 1.8462, False)],
)  # fmt: skip
def test_calculate_gain_beside_the_quadrature(name, gain, agrees):
    assert forward_gain(ACTIVATIONS[name]) == pytest.approx(gain, abs=5e-5)  # to the digits given
    assert (abs(nn.init.calculate_gain(name) - forward_gain(ACTIVATIONS[name])) < 1e-12) is agrees


def test_gaussian_moments():
    # E z⁴ = 3, E e^{z/2} = e^{1/8}, E cos z = e^{-1/2}: known in closed form; 480 nodes leave only rounding
    assert gaussian_mean(lambda z: z**4) == pytest.approx(3, rel=1e-13)
    assert gaussian_mean(lambda z: torch.exp(z / 2)) == pytest.approx(math.exp(1 / 8), rel=1e-13)
    assert gaussian_mean(torch.cos) == pytest.approx(math.exp(-1 / 2), rel=1e-13)
    assert gaussian_mean(torch.square, std=3.0) == pytest.approx(9, rel=1e-13)


@pytest.mark.parametrize(("f", "s"), [(selu, 2.0), (selu, 1.0), (torch.tanh, 1 / 3), (torch.tanh, 1.0), (elu, 2.0)])
def test_signal_power_of_sampled_networks(f, s):
    g = draw(1)
    x = torch.randn(64, 512, generator=g)
    powers = [1.0]
    for _ in range(6):
        x = f(x @ kaiming(512, 512, gain=math.sqrt(s), generator=g).mT)
        powers.append(float(x.square().mean()))
    # width 512 for infinite: each layer scatters by about √(2/512) = 6 % at most, common to all samples
    assert np.log(powers) == pytest.approx(np.log(signal_power(f, s, layers=6).numpy()), abs=0.3)


def test_selu_explodes_with_kaiming():
    """The lecture's recommendation for SELU and ELU, and the variances that they need instead."""
    assert float(signal_power(selu, 2.0, layers=20)[-1]) == pytest.approx(69.97, abs=0.01)
    assert float(signal_power(elu, 2.0, layers=20)[-1]) == pytest.approx(6.82, abs=0.01)
    for f in (selu, elu, relu):
        # Var(W x) = s E x² = 1 is a fixed point of s = gain²: rounding in 20 layers
        s = forward_gain(f) ** 2
        powers = signal_power(f, s, layers=20, start=1 / s)
        torch.testing.assert_close(s * powers, torch.ones(21, dtype=DOUBLE), rtol=1e-10, atol=0)
    assert forward_gain(selu) == pytest.approx(1, abs=1e-12)  # SELU's constants are made for N(0, 1/m)


def test_the_printed_lecun_fades():
    printed, paper = (float(signal_power(torch.tanh, s, layers=20)[-1]) for s in (1 / 3, 1.0))
    assert printed == pytest.approx(1.51e-10, rel=0.01)
    assert paper == pytest.approx(0.0259, rel=0.01)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
def test_draws_on_an_accelerator():
    device = torch.accelerator.current_accelerator()
    W = glorot(20, 30, generator=torch.Generator(device).manual_seed(0), device=device)
    assert W.device.type == device.type
    assert float(W.abs().max()) <= math.sqrt(6 / 50)
