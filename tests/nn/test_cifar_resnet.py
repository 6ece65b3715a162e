"""CIFAR ResNets: sizes as published, shapes, initial weights, against torch's own layers put together by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d

from thalweg.nn import CifarResNet


@pytest.mark.parametrize(
    ("depth", "classes", "parameters", "layers"),
    [
        (8, 10, 78042, 10),
        (34, 10, 21282122, 37),  # 21.3M, and 23.7M for 100 classes below: the public CIFAR recipes
        (34, 100, 21328292, 37),
        (50, 10, 23520842, 54),
        (50, 100, 23705252, 54),
    ],
)
def test_sizes_are_the_published_ones(depth: int, classes: int, parameters: int, layers: int) -> None:
    with torch.device("meta"):
        model = CifarResNet(depth, classes=classes)  # type: ignore[arg-type]
    assert sum(p.numel() for p in model.parameters()) == parameters
    weights = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(weights) == layers
    if depth > 8:  # the name counts the layers of the main path: neither shortcuts nor, by custom, their normalizations
        assert (
            layers - sum("shortcut" in name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)) == depth
        )


@pytest.mark.parametrize("depth", [8, 34, 50])
def test_maps_are_halved_by_every_stage_but_the_first(depth: int) -> None:
    model = CifarResNet(depth, width=4).eval()  # type: ignore[arg-type]
    seen: list[tuple[int, ...]] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape[1:])))
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    wide = 4 if depth == 50 else 1
    stages = 3 if depth == 8 else 4
    assert list(dict.fromkeys(seen)) == [(wide * 4 << k, 32 >> k, 32 >> k) for k in range(stages)]


def by_hand(model: CifarResNet, x: Tensor) -> Tensor:
    """ResNet-8 from its state, written out."""
    state = model.state_dict()

    def norm(x: Tensor, name: str) -> Tensor:
        return batch_norm(x, None, None, state[f"{name}.weight"], state[f"{name}.bias"], training=True)

    x = norm(conv2d(x, state["stem.weight"], padding=1), "norm").relu()
    for k, stride in enumerate((1, 2, 2)):
        block = f"blocks.{k}"
        branch = norm(conv2d(x, state[f"{block}.convolutions.0.weight"], stride=stride, padding=1), f"{block}.norms.0")
        branch = norm(conv2d(branch.relu(), state[f"{block}.convolutions.1.weight"], padding=1), f"{block}.norms.1")
        if k and model.blocks[k].shortcut is not None:
            x = norm(conv2d(x, state[f"{block}.shortcut.0.weight"], stride=stride), f"{block}.shortcut.1")
        x = (branch if model.blocks[k].shortcut is None else branch + x).relu()
    return x.mean((2, 3)) @ state["last.weight"].T + state["last.bias"]


@pytest.mark.parametrize("shortcuts", [True, False])
def test_the_forward_pass_is_the_published_formula(shortcuts: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    model = CifarResNet(8, width=4, shortcuts=shortcuts, generator=draw).double()
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=draw)
    # rounding of some hundred float64 sums, magnified by three normalizations
    torch.testing.assert_close(model(x), by_hand(model, x), rtol=1e-10, atol=1e-12)


def test_weights_start_as_he_and_torch_have_them_and_follow_the_generator() -> None:
    first, again, other = (CifarResNet(8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    for (name, p), q, r in zip(first.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
        if p.ndim == 4:
            assert not torch.equal(p, r)
            fan_in = p[0].numel()
            # the standard deviation of n Gaussian draws has a relative error of 1/√(2n): five of them
            assert abs(float(p.detach().std()) * (fan_in / 2) ** 0.5 - 1) < 5 / (2 * p.numel()) ** 0.5, name
    assert float(first.last.weight.detach().abs().max()) <= first.last.in_features**-0.5


def test_an_unknown_depth_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of 8, 34, 50"):
        CifarResNet(18)  # type: ignore[arg-type]
