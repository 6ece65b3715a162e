"""Normalization against torch's layers in training and prediction, and against scikit-learn's scaler."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.preprocessing import StandardScaler
from torch import nn

from thalweg.lecture import (
    RunningStatistics,
    batch_norm,
    batch_norm_inference,
    identity_parameters,
    layer_norm,
    within_sigmas,
    z_score,
)

DOUBLE = torch.float64
CLOSE = {"rtol": 1e-10, "atol": 1e-12}  # float64 rounding through a division by σ, which may be small


def batch(seed=0, m=12, d=3, scale=1.0, shift=0.0):
    return scale * torch.randn(m, d, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE) + shift


@given(seed=st.integers(0, 1000), momentum=st.floats(0.01, 1), eps=st.sampled_from([1e-5, 1e-3, 0.1]))
def test_batch_norm_is_torchs_in_training_and_prediction(seed, momentum, eps):
    module = nn.BatchNorm1d(3, eps=eps, momentum=momentum, dtype=DOUBLE)
    gamma, beta = batch(seed, 2)
    with torch.no_grad():
        module.weight.copy_(gamma)
        module.bias.copy_(beta)
    running = RunningStatistics.initial(batch())
    for k in range(3):
        x = batch(seed + k, scale=1 + k, shift=k)
        torch.testing.assert_close(batch_norm(x, gamma, beta, eps=eps), module(x).detach(), **CLOSE)
        running = running.updated(x, momentum=momentum)
    torch.testing.assert_close(running.mean, module.running_mean, **CLOSE)
    torch.testing.assert_close(running.var, module.running_var, **CLOSE)
    module.eval()
    one = batch(seed, m=1)  # prediction needs no batch
    torch.testing.assert_close(batch_norm_inference(one, running, gamma, beta, eps=eps), module(one).detach(), **CLOSE)


def test_torchs_momentum_is_the_weight_of_the_new_value():
    x = batch(shift=5.0)
    running = RunningStatistics.initial(x).updated(x, momentum=1.0)
    torch.testing.assert_close(running.mean, x.mean(0), **CLOSE)
    # and what is stored is m/(m - 1) times the variance that normalizes the batch
    torch.testing.assert_close(running.var, x.var(0, correction=0) * 12 / 11, **CLOSE)


@given(seed=st.integers(0, 1000), eps=st.sampled_from([1e-5, 0.1]))
def test_layer_norm_is_torchs(seed, eps):
    module = nn.LayerNorm(5, eps=eps, dtype=DOUBLE)
    x = batch(seed, 8, 5).reshape(2, 4, 5)
    gamma, beta = batch(seed + 1, 2, 5)
    with torch.no_grad():
        module.weight.copy_(gamma)
        module.bias.copy_(beta)
    torch.testing.assert_close(layer_norm(x, gamma, beta, eps=eps), module(x).detach(), **CLOSE)
    assert torch.equal(module(x), module.eval()(x))


def test_layer_norm_is_batch_norm_transposed():
    x = batch(m=6, d=4)
    torch.testing.assert_close(layer_norm(x), batch_norm(x.mT).mT, **CLOSE)


@given(scale=st.floats(0.01, 100), shift=st.floats(-10, 10))
def test_normalization_forgets_scale_and_shift(scale, shift):
    x = batch()
    for normalize in (lambda x: batch_norm(x, eps=0.0), lambda x: layer_norm(x, eps=0.0), z_score):
        # the mean of numbers near 10 is subtracted from them: 1e-15/0.01 at worst
        torch.testing.assert_close(normalize(scale * x + shift), normalize(x), rtol=0, atol=1e-11)


def test_z_score_is_scikit_learns():
    x = batch(scale=4.0, shift=7.0)
    expected = torch.from_numpy(StandardScaler().fit_transform(x.numpy()))
    torch.testing.assert_close(z_score(x), expected, **CLOSE)
    assert float((z_score(x) - (x - x.mean(0)) / x.std(0)).abs().max()) > 0.01  # torch.std() divides by N - 1


@pytest.mark.parametrize("k", [0.5, 1, 2, 3])
def test_within_sigmas_is_the_normal_distribution(k):
    assert within_sigmas(k) == pytest.approx(norm.cdf(k) - norm.cdf(-k), abs=1e-14)  # rounding


@pytest.mark.parametrize("scale", [1.0, 0.1, 1e-3])
def test_the_identity_needs_epsilon(scale):
    x = batch(scale=scale)
    torch.testing.assert_close(batch_norm(x, *identity_parameters(x, eps=1e-5)), x, **CLOSE)
    printed = batch_norm(x, *identity_parameters(x)) - x.mean(0)
    # γ = √σ² shrinks the deviations by √(σ²/(σ² + ε)): 0.999995 for σ = 1, 0.30 for σ = 10⁻³
    var = x.var(0, correction=0)
    torch.testing.assert_close(printed, (x - x.mean(0)) * (var / (var + 1e-5)).sqrt(), **CLOSE)


def test_the_place_of_normalization_matters():
    """Before tanh the output has less than unit variance; after it exactly that, and values beyond 1."""
    x = batch(m=1000, d=1, scale=3.0, shift=1.0)
    before, after = torch.tanh(batch_norm(x, eps=0.0)), batch_norm(torch.tanh(x), eps=0.0)
    assert float(before.var(correction=0)) == pytest.approx(0.394, abs=0.05)  # E tanh², the sample scatters
    assert float(after.var(correction=0)) == pytest.approx(1, abs=1e-12)
    assert float(before.abs().max()) < 1 < float(after.abs().max())


def test_running_statistics_carry_no_gradient():
    x = batch().requires_grad_()
    assert not RunningStatistics.initial(x).updated(x).mean.requires_grad
    assert batch_norm(x).requires_grad


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
def test_an_accelerator_gives_the_same_numbers():
    device = torch.accelerator.current_accelerator()
    for f in (batch_norm, layer_norm, z_score):
        torch.testing.assert_close(f(batch().to(device)).cpu(), f(batch()), rtol=1e-9, atol=1e-9)
