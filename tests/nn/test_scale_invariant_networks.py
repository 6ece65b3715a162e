"""ConvNet, PreActResNet and MLP: published sizes, invariance, initialization and variants."""

import pytest
import torch
from torch import nn

from thalweg.nn import MLP, ConvNet, PreActResNet, draw_default_, freeze_last_layer_


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def trained(model):
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def test_parameter_counts_are_the_published_ones():
    assert trained(ConvNet()) == 387_936
    assert trained(PreActResNet()) == 2_790_240
    # affine: two numbers for each normalized channel, and the last layer (with a bias in ConvNet only)
    assert trained(ConvNet(affine=True)) == 387_936 + 2 * (32 + 64 + 128 + 256) + 256 * 10 + 10
    norms = 4 * 32 + (32 + 64 + 32 + 2 * 64) + (64 + 128 + 64 + 2 * 128) + (128 + 256 + 128 + 2 * 256) + 256
    assert trained(PreActResNet(affine=True)) == 2_790_240 + 2 * norms + 256 * 10
    assert trained(ConvNet(normalize=False)) == 387_936 + 256 * 10 + 10
    assert trained(MLP(64, (96, 96))) == 64 * 96 + 96 * 96
    assert trained(MLP(64, (96, 96), affine=True)) == 64 * 96 + 96 * 96 + 4 * 96 + 960


def test_resnet_shapes_and_depths():
    features = PreActResNet(width=4, generator=draw()).blocks(torch.zeros(2, 4, 32, 32))
    assert features.shape == (2, 32, 4, 4)  # what the published 4x4 average pooling takes
    convolutions = [m for m in PreActResNet(width=2, blocks=(3, 4, 6, 3)).modules() if isinstance(m, nn.Conv2d)]
    assert len([m for m in convolutions if m.kernel_size == (3, 3)]) + 1 == 34
    with pytest.raises(ValueError, match="at least one block"):
        PreActResNet(blocks=(2, 0))


NETWORKS = {
    "ConvNet": (lambda **options: ConvNet(2, 4, 3, **options), (2, 16, 16)),
    "PreActResNet": (lambda **options: PreActResNet(2, 4, 3, blocks=(1, 2), **options), (2, 16, 16)),
    "MLP": (lambda **options: MLP(20, (8, 7), 3, **options), (4, 5)),
}


@pytest.mark.parametrize(("build", "shape"), NETWORKS.values(), ids=NETWORKS.keys())
def test_outputs_do_not_see_the_scale_of_the_trained_weights(build, shape):
    """Seed 001, equation (1): to rounding at eps 1e-12, where eps/variance is below 1e-10."""
    x = torch.randn(6, *shape, generator=draw(1), dtype=torch.float64)
    for affine in (False, True):
        model = build(affine=affine, generator=draw()).double()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eps = 1e-12
        before = model(x)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.mul_(2.0)
        same = torch.allclose(model(x), before, rtol=1e-8, atol=1e-8)
        assert same is not affine


@pytest.mark.parametrize(("build", "shape"), NETWORKS.values(), ids=NETWORKS.keys())
def test_last_layer_is_frozen_at_its_norm_unless_affine(build, shape):
    model = build(last_layer_norm=4.0, generator=draw())
    assert model.last.weight.norm().item() == pytest.approx(4.0)
    assert not any(weight.requires_grad for weight in model.last.parameters())
    model(torch.randn(6, *shape, generator=draw(1))).square().mean().backward()
    assert all((weight.grad is not None) == weight.requires_grad for weight in model.parameters())
    ordinary = build(affine=True, last_layer_norm=4.0, generator=draw())
    assert all(weight.requires_grad for weight in ordinary.parameters())
    torch.testing.assert_close(ordinary.last.weight * (4.0 / ordinary.last.weight.norm()), model.last.weight)


@pytest.mark.parametrize(("build", "shape"), NETWORKS.values(), ids=NETWORKS.keys())
def test_generator_decides_the_weights(build, shape):
    torch.manual_seed(0)
    one = build(generator=draw(5)).state_dict()
    torch.manual_seed(1)
    same, other = build(generator=draw(5)).state_dict(), build(generator=draw(6)).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["last.weight"], other["last.weight"])


def test_starting_radius_is_that_of_the_default_initialization():
    """E|W|² = c_out/3 for each layer, so rho₀² = 160 and 800 at c = 32: seed 001's lr = ELR·rho₀² rests on it."""
    for model, expected in ((ConvNet(generator=draw()), 160.0), (PreActResNet(generator=draw()), 800.0)):
        rho2 = sum(weight.detach().square().sum().item() for weight in model.parameters() if weight.requires_grad)
        # a sum of squares of more than 387,936 uniform numbers: spread below 0.3%, the small stem included
        assert rho2 == pytest.approx(expected, rel=0.02)


def test_freezing_refuses_a_norm_that_is_not_positive():
    layer = nn.Linear(4, 2)
    with pytest.raises(ValueError, match="must be positive"):
        freeze_last_layer_(layer, 0.0)
    draw_default_(layer, draw())
    freeze_last_layer_(layer, 2.5)
    assert layer.weight.norm().item() == pytest.approx(2.5)
