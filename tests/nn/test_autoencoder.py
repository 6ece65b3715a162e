"""The autoencoder of seed 000, section 4.1, and initial weights that a generator decides."""

import pytest
import torch
from torch import nn

from thalweg.nn import Autoencoder, draw_default_


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def weights(model):
    return [param.detach().clone() for param in model.parameters()]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 8, 8), (3, 4, 5)])
def test_shapes_and_range(shape):
    model = Autoencoder(shape, hidden=7, latent=3, generator=generator())
    images = torch.rand(5, *shape, generator=generator(1))
    assert model.encoder(images).shape == (5, 3)
    out = model(images)
    assert out.shape == images.shape
    assert (out > 0).all()
    assert (out < 1).all()


def test_the_seeds_network():
    model = Autoencoder((1, 28, 28))
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [
        (784, 128),
        (128, 16),
        (16, 128),
        (128, 784),
    ]
    # 784·128 + 128, 128·16 + 16, 16·128 + 128, 128·784 + 784
    assert sum(param.numel() for param in model.parameters()) == 100_480 + 2_064 + 2_176 + 101_136 == 205_856


def test_the_forward_pass_is_section_4_1():
    model = Autoencoder((1, 4, 4), generator=generator())
    images = torch.rand(3, 1, 4, 4, generator=generator(1))
    A, a, B, b, C, c, D, d = weights(model)
    hidden = torch.relu((torch.relu(images.flatten(1) @ A.T + a) @ B.T + b) @ C.T + c)  # no activation after the code
    expected = torch.sigmoid(hidden @ D.T + d).view(3, 1, 4, 4)
    torch.testing.assert_close(model(images), expected)  # the same float32 sums in another association


def test_the_generator_decides_the_weights_and_the_global_state_does_not():
    torch.manual_seed(1)
    first = weights(Autoencoder((1, 8, 8), generator=generator(3)))
    torch.manual_seed(2)
    again = weights(Autoencoder((1, 8, 8), generator=generator(3)))
    other = weights(Autoencoder((1, 8, 8), generator=generator(4)))
    assert same(first, again)
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_without_a_generator_the_weights_are_torchs_own():
    torch.manual_seed(5)
    first = weights(Autoencoder((1, 8, 8)))
    torch.manual_seed(5)
    layers = [nn.Linear(64, 128), nn.Linear(128, 16), nn.Linear(16, 128), nn.Linear(128, 64)]
    assert same(first, [param for layer in layers for param in layer.parameters()])


LAYERS = {
    "linear": lambda: nn.Linear(9, 4),
    "no bias": lambda: nn.Linear(9, 4, bias=False),
    "conv1d": lambda: nn.Conv1d(2, 3, 5),
    "conv2d": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "conv3d": lambda: nn.Conv3d(1, 2, 2),
    "transposed": lambda: nn.ConvTranspose2d(3, 5, 2),
}


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_every_draw_is_the_one_that_reset_parameters_makes(make):
    layer = make()
    draw_default_(layer, generator(7))
    drawn = weights(layer)
    torch.manual_seed(7)
    layer.reset_parameters()
    assert same(drawn, weights(layer))


@pytest.mark.parametrize("make", [lambda: nn.Linear(400, 300), lambda: nn.Conv2d(16, 800, 5)])
def test_uniform_between_plus_and_minus_one_over_root_fan_in(make):
    layer = make()
    draw_default_(layer, generator())
    bound = 400**-0.5
    n = (
        layer.weight.numel()
    )  # at least 120,000: the largest of them is beyond 0.999 of the bound but for e^-120 chances
    assert 0.999 * bound < layer.weight.abs().max() <= bound
    # The mean square of n uniform draws has relative standard error sqrt(4/5)/sqrt(n) < 0.0026: four of them.
    assert layer.weight.square().mean().item() * 3 * 400 == pytest.approx(1.0, abs=4 * (0.8 / n) ** 0.5)
    assert layer.bias.abs().max() <= bound


def test_other_layers_are_untouched_and_the_order_is_that_of_the_modules():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Embedding(5, 2), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.uniform_(1, 2)
    norm, embedding = weights(model[1]), weights(model[2])
    draw_default_(model, generator(9))
    assert same(norm, weights(model[1]))
    assert same(embedding, weights(model[2]))
    draws = generator(9)
    for layer in (nn.Linear(3, 4), nn.Linear(4, 2)):
        draw_default_(layer, draws)
        assert same(weights(layer), weights(model[0 if layer.in_features == 3 else 3]))


def test_the_dtype_stays():
    model = Autoencoder((1, 4, 4)).double()
    draw_default_(model, generator())
    assert {param.dtype for param in model.parameters()} == {torch.float64}
