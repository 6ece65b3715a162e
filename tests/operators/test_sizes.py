"""Map sizes by a dry forward pass that leaves no trace."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from thalweg.operators import LayerOperator, input_shapes


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.deep = parametrizations.spectral_norm(nn.Conv2d(4, 6, 3))
        self.up = nn.ConvTranspose2d(6, 2, 2, stride=2)
        self.head = nn.Linear(2, 5)
        self.spare = nn.Conv1d(1, 1, 1)

    def forward(self, x):
        x = self.up(self.deep(self.drop(self.norm(self.stem(x)))))
        return self.head(x.mean((2, 3)))


def test_shapes_of_every_linear_layer_and_convolution():
    shapes = input_shapes(Net(), torch.zeros(2, 3, 16, 12))
    assert shapes == {"stem": (3, 16, 12), "deep": (4, 8, 6), "up": (6, 6, 4), "head": (2,)}
    assert list(shapes) == ["stem", "deep", "up", "head"]
    assert shapes.unused == ("spare",)
    assert shapes.several == {}


def test_operators_of_a_whole_model_follow_from_its_shapes():
    model = Net().eval()
    shapes = input_shapes(model, torch.zeros(1, 3, 16, 12))
    sizes = {
        name: LayerOperator.of(model.get_submodule(name), shape).output_shape
        for name, shape in shapes.items()
        if name != "up"
    }
    assert sizes == {"stem": (4, 8, 6), "deep": (6, 6, 4), "head": (5,)}


def test_nothing_is_left_behind():
    model = Net().train()
    model.norm.eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    input_shapes(model, torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(param.grad is None for param in model.parameters())


def test_a_module_that_draws_and_counts_in_any_mode_is_put_back_too():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.conv(x + torch.randn_like(x))

    model, random_state = Noisy(), torch.get_rng_state()
    assert input_shapes(model, torch.zeros(1, 1, 3, 3)) == {"conv": (1, 3, 3)}
    assert model.calls == 0
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_model_that_fails_is_put_back_as_well():
    model = Net().train()
    with pytest.raises(RuntimeError):
        input_shapes(model, torch.zeros(1, 7, 16, 16))
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_shared_module_used_at_two_sizes_is_reported():
    conv = nn.Conv2d(1, 1, 3)
    model = nn.Sequential(conv, nn.ReLU(), conv)
    with pytest.warns(UserWarning, match=r"0: \(1, 8, 8\), \(1, 6, 6\)") as warned:
        shapes = input_shapes(model, torch.zeros(1, 1, 8, 8))
    assert warned[0].filename == __file__  # the line that asked
    assert shapes == {"0": (1, 8, 8)}
    assert shapes.several == {"0": ((1, 8, 8), (1, 6, 6))}
    same = nn.Conv2d(1, 1, 3, padding=1)
    assert input_shapes(nn.Sequential(same, same), torch.zeros(1, 1, 8, 8)).several == {}


def test_without_a_batch_axis_by_keyword_and_with_several_arguments():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.token = nn.Conv1d(2, 3, 3), nn.Linear(4, 4)

        def forward(self, x, t):
            return self.conv(input=x), self.token(t)

    shapes = input_shapes(Pair(), (torch.zeros(2, 9), torch.zeros(5, 7, 4)))
    assert shapes == {"conv": (2, 9), "token": (4,)}


def test_the_model_itself_may_be_the_layer():
    assert input_shapes(nn.Conv3d(1, 2, 2), torch.zeros(1, 1, 4, 5, 6)) == {"": (1, 4, 5, 6)}


def test_lazy_models_are_refused():
    with pytest.raises(ValueError, match="call it once on real data"):
        input_shapes(nn.Sequential(nn.LazyConv2d(3, 3)), torch.zeros(1, 1, 8, 8))


def test_a_shape_in_place_of_a_sample_is_named():
    with pytest.raises(TypeError, match=r"got the shape \(3, 8, 8\): give torch.zeros\(1, ...\)"):
        input_shapes(nn.Conv2d(3, 3, 3), (3, 8, 8))
