"""The Taylor criterion against the loss without each channel, and the masks of torch.nn.utils.prune."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrizations import weight_norm

from thalweg.regularize import L2, prune_channels_, taylor_scores


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(inplace=True),
        nn.Conv2d(5, 4, 3, padding=1), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    ).double()  # fmt: skip


def batches(count=2, n=6):
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 2, 6, 6, generator=g, dtype=torch.float64), torch.randint(3, (n,), generator=g))
        for _ in range(count)
    ]


def by_definition(model, name):
    """Mean over examples of |mean over positions of z ∂C/∂z|, one example at a time, normalized."""
    model = copy.deepcopy(model).eval()
    kept = []
    model.get_submodule(name).register_forward_hook(lambda _, __, z: kept.append(z.clone()) or kept[-1])
    rows = []
    for x, y in batches():
        for i in range(len(x)):
            kept.clear()
            loss = cross_entropy(model(x[i : i + 1]), y[i : i + 1])
            (gradient,) = torch.autograd.grad(loss, kept[0])
            rows.append((gradient * kept[0]).detach()[0].flatten(1).mean(1).abs())
    theta = torch.stack(rows).mean(0)
    return theta / theta.norm()


def out_of_place(model):
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return model


def test_scores_by_definition_one_example_at_a_time():
    model = out_of_place(network())
    before = copy.deepcopy(model.state_dict())
    scores = taylor_scores(model, cross_entropy, batches())
    assert list(scores) == ["0", "3"]
    for name, theta in scores.items():
        torch.testing.assert_close(theta, by_definition(model, name), rtol=1e-10, atol=0)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(param.grad is None for param in model.parameters())


def test_the_criterion_is_the_first_order_change_of_the_loss():
    """For the last layer's inputs the loss without a channel is known; small channels change it as predicted."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 1, bias=False), nn.Flatten(), nn.Linear(4, 3)).double()
    model[0].weight.data *= 1e-3  # so small that second order is 1e-3 of the first
    x, y = torch.randn(1, 2, 1, 1, dtype=torch.float64), torch.tensor([1])
    theta = taylor_scores(model, cross_entropy, [(x, y)])["0"]
    changes = []
    for channel in range(4):
        without = copy.deepcopy(model)
        without[0].weight.data[channel] = 0
        changes.append((cross_entropy(without(x), y) - cross_entropy(model(x), y)).abs())
    changes = torch.stack(changes).detach()
    torch.testing.assert_close(theta, changes / changes.norm(), rtol=1e-2, atol=0)


def test_frozen_networks_and_in_place_activations_are_scored():
    model = network()
    scores = taylor_scores(model, cross_entropy, batches())
    model.requires_grad_(False)
    for name, theta in taylor_scores(model, cross_entropy, batches()).items():
        torch.testing.assert_close(theta, scores[name], rtol=1e-12, atol=0)


def test_the_smallest_channels_of_the_whole_network_are_masked():
    model = network()
    scores = taylor_scores(model, cross_entropy, batches())
    chosen = prune_channels_(model, scores, 3)
    ranked = sorted((float(theta[k]), name, k) for name, theta in scores.items() for k in range(len(theta)))
    assert sorted((name, k) for name, channels in chosen.items() for k in channels) == sorted(
        (name, k) for _, name, k in ranked[:3]
    )
    for name, channels in chosen.items():
        layer = model.get_submodule(name)
        output = layer(torch.randn(1, layer.in_channels, 6, 6, dtype=torch.float64))
        assert [k for k in range(output.shape[1]) if (output[:, k] == 0).all()] == channels


def test_masks_survive_training_and_the_penalty_sees_them():
    model = network()
    chosen = prune_channels_(model, taylor_scores(model, cross_entropy, batches()), 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in batches():
        optimizer.zero_grad()
        (cross_entropy(model(x), y) + L2(0.1)(model)).backward()
        optimizer.step()
    table = {row.layer: row.value for row in L2(1.0).per_layer(model).regularized}
    x, _ = batches()[0]
    model(x)  # torch renews the masked weight at each forward pass
    for name, channels in chosen.items():
        weight = model.get_submodule(name).weight
        assert (weight[channels] == 0).all()
        assert table[f"{name}.weight"] == pytest.approx(0.5 * weight.square().sum().item(), rel=1e-12)


def test_a_second_round_counts_what_is_left_and_every_layer_keeps_a_channel():
    model = network()
    scores = taylor_scores(model, cross_entropy, batches())
    first = prune_channels_(model, scores, 4)
    second = prune_channels_(model, taylor_scores(model, cross_entropy, batches()), 3)
    for name in scores:
        masked = first.get(name, []) + second.get(name, [])
        assert len(masked) == len(set(masked)) < len(scores[name])
    with pytest.raises(ValueError, match="1 channels cannot be masked: 2 are left, and every layer keeps one"):
        prune_channels_(model, scores, 1)


def test_errors():
    model = network()
    with pytest.raises(ValueError, match="reaches the loss"):
        taylor_scores(model, cross_entropy, [])
    with pytest.raises(ValueError, match=r"amount=1\.5"):
        prune_channels_(model, {"0": torch.ones(5)}, 1.5)
    refused = [
        (nn.ConvTranspose2d(4, 6, 3), torch.rand(6), "the rows of a ConvTranspose2d's weight are its inputs"),
        (weight_norm(nn.Conv2d(3, 4, 3)), torch.rand(4), "its weight is parametrized: remove"),
        (nn.Conv2d(3, 4, 3), torch.rand(6), r"it has 4 channels and scores of shape \(6,\)"),
        (nn.Conv2d(3, 4, 3), torch.tensor(1.0), r"it has 4 channels and scores of shape \(\)"),
        (nn.Conv2d(3, 2, 3), torch.tensor([0.5, math.nan]), "its scores are not finite"),
    ]
    for layer, scores, reason in refused:
        with pytest.raises(ValueError, match=f"channels of the model cannot be masked: {reason}"):
            prune_channels_(layer, {"": scores}, 1)
