"""Noise scale against gradients taken one by one, and both estimators against known distributions."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from thalweg.landscape import gradient_noise_scale, noise_scale_from_norms


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_one_by_one(chunk):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    model = model.double().eval()
    model[1].weight.requires_grad_(False)
    x, y = torch.randn(20, 1, 6, 6, generator=draw(), dtype=torch.float64), torch.arange(20) % 3
    params = [p for p in model.parameters() if p.requires_grad]
    losses = [cross_entropy(model(x[i : i + 1]), y[i : i + 1]) for i in range(20)]
    rows = torch.stack([torch.cat([g.flatten() for g in torch.autograd.grad(loss, params)]) for loss in losses])
    found = gradient_noise_scale(model, cross_entropy, (x, y), chunk=chunk)
    trace = rows.T.cov().trace().item()
    assert found.noise == pytest.approx(trace, rel=1e-10)
    assert found.signal == pytest.approx(rows.mean(dim=0).square().sum().item() - trace / 20, rel=1e-10)
    batches = list(zip(x.split(6), y.split(6), strict=True))
    assert gradient_noise_scale(model, cross_entropy, batches, chunk=chunk).noise == pytest.approx(trace, rel=1e-10)


def test_unbiased():
    """Gradients 2(w - y) with y ~ N(0, 1) at w = 1/2: |G|² = 1 and tr Σ = 4."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 0.5)
    g = draw()
    found = []
    for _ in range(300):
        y = torch.randn(10, 1, generator=g, dtype=torch.float64)
        found.append(gradient_noise_scale(model, mse_loss, (torch.ones_like(y), y)))
    noise = torch.tensor([f.noise for f in found])
    signal = torch.tensor([f.signal for f in found])
    assert abs(noise.mean() - 4) < 4 * noise.std() / 300**0.5
    assert abs(signal.mean() - 1) < 4 * signal.std() / 300**0.5
    assert any(f.scale == float("inf") for f in found)  # 10 samples cannot tell |G|² from 0 every time


def test_two_batches_are_unbiased_too():
    g = draw()
    G = torch.tensor([1.0, 2.0, 0.0])
    small, large = (
        (G + torch.randn(20_000, 3, generator=g) / b**0.5).square().sum(dim=1).mean().item() for b in (4, 32)
    )
    found = noise_scale_from_norms(small, large, 4, 32)
    assert found.signal == pytest.approx(5, rel=0.02)  # 20,000 draws
    assert found.noise == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize(("b", "B"), [(4, 4), (8, 4), (0, 4)])
def test_batch_sizes(b, B):
    with pytest.raises(ValueError, match="a larger one expected"):
        noise_scale_from_norms(1.0, 1.0, b, B)


def test_one_sample_has_no_variance():
    with pytest.raises(ValueError, match="1 sample: at least two"):
        gradient_noise_scale(nn.Linear(1, 1), mse_loss, (torch.ones(1, 1), torch.ones(1, 1)))


def test_chunk():
    with pytest.raises(ValueError, match="chunk=0"):
        gradient_noise_scale(nn.Linear(1, 1), mse_loss, (torch.ones(2, 1), torch.ones(2, 1)), chunk=0)
