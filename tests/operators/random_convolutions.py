"""Random convolutions of every kind, and their matrices by the only definition that cannot be wrong: the module."""

import torch
from hypothesis import strategies as st
from torch import nn

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=draw(seed))


def randomize(module, seed=0):
    """Float64 weights and biases that do not depend on the global random state."""
    module.double()
    with torch.no_grad():
        for k, param in enumerate(module.parameters()):
            param.copy_(randn(*param.shape, seed=seed + k))
    return module


@st.composite
def convolutions(draw_from, axes=(1, 2, 2, 3), modes=("zeros", "circular")):
    """(module, input_shape): kernel 1-5, stride 1-3, padding 0-3 or a word, dilation 1-2, groups, maps of any size."""
    axes = draw_from(st.sampled_from(axes))

    def each(low, high):
        return tuple(draw_from(st.lists(st.integers(low, high), min_size=axes, max_size=axes)))

    small = axes == 3
    kernel, stride, dilation = each(1, 3 if small else 5), each(1, 3), each(1, 2)
    padding = draw_from(st.sampled_from(["same", "valid", *[None] * 5])) or each(0, 2 if small else 3)
    mode = draw_from(st.sampled_from(modes))
    if padding == "same":
        stride = (1,) * axes
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    least = []  # the smallest map: the padded one holds the kernel, circular padding wraps around once
    for a, span in enumerate(spans):
        if isinstance(padding, str):
            least.append(span if padding == "valid" else span // 2 if mode == "circular" else 1)
        else:
            least.append(max(1, span - 2 * padding[a], padding[a] if mode == "circular" else 1))
    size = [max(1, h) + extra for h, extra in zip(least, each(0, 2 if small else 4), strict=True)]
    groups = draw_from(st.sampled_from([1, 1, 2, 3]))
    fan_in, fan_out = groups * draw_from(st.integers(1, 2)), groups * draw_from(st.integers(1, 2))
    module = CONVOLUTIONS[axes](fan_in, fan_out, kernel, stride, padding, dilation, groups, padding_mode=mode)
    return randomize(module, seed=draw_from(st.integers(0, 2**31))), (fan_in, *size)


def matrix(module, input_shape):
    """Columns = the module on unit maps, minus its bias: (m, n)."""
    units = torch.eye(torch.Size(input_shape).numel(), dtype=torch.float64).view(-1, *input_shape)
    with torch.no_grad():
        return (module(units) - module(torch.zeros_like(units))).flatten(1).T
