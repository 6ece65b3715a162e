"""CSGD as a torch optimizer: SGD where it must be, options, shapes."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.optim import SGD, lr_scheduler

from thalweg.optim import CSGD, reparam_direction

SGD_CONFIGS = [
    {},
    {"maximize": True},
    {"weight_decay": 0.1},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "maximize": True},
]
SCHEDULES = [
    lambda optimizer: lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5),
    lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=6),
    lambda optimizer: lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=8, cycle_momentum=False),
]


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def parameter(*shape, seed=0, dtype=torch.float32):
    param = nn.Parameter(randn(*shape, seed=seed, dtype=dtype))
    param.grad = randn(*shape, seed=seed + 1, dtype=dtype)
    return param


def stepped(param, grad=None, steps=1, **options):
    """A copy of ``param`` after CSGD steps along ``grad`` or its own gradient."""
    copy = nn.Parameter(param.detach().clone())
    copy.grad = param.grad if grad is None else grad
    optimizer = CSGD([copy], **{"lr": 0.1, **options})
    for _ in range(steps):
        optimizer.step()
    return copy.detach()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("config", SGD_CONFIGS, ids=str)
@pytest.mark.parametrize(("shape", "depth"), [((), 2), ((7,), 2), ((4, 5), 1), ((4, 3, 2, 2), 1)])
def test_bit_for_bit_sgd_without_a_matrix_or_without_a_factor(shape, depth, config, schedule):
    ours, theirs = nn.Parameter(randn(*shape)), nn.Parameter(randn(*shape))
    optimizers = [CSGD([ours], lr=0.1, depth=depth, **config), SGD([theirs], lr=0.1, **config)]
    schedules = [schedule(optimizer) for optimizer in optimizers]
    for step in range(6):
        ours.grad, theirs.grad = randn(*shape, seed=step), randn(*shape, seed=step)
        for optimizer, scheduler in zip(optimizers, schedules, strict=True):
            optimizer.step()
            scheduler.step()
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("config", SGD_CONFIGS, ids=str)
@pytest.mark.parametrize("exact", [False, True])
def test_matrices_are_sgd_fed_with_directions(config, exact):
    """The momentum buffer holds directions, each made with the weight of its time."""
    ours, theirs = nn.Parameter(randn(4, 5)), nn.Parameter(randn(4, 5))
    rest = {key: value for key, value in config.items() if key not in ("weight_decay", "maximize")}
    optimizer, sgd = CSGD([ours], lr=0.05, exact=exact, **config), SGD([theirs], lr=0.05, **rest)
    for step in range(4):
        ours.grad = randn(4, 5, seed=step)
        G = (-ours.grad if config.get("maximize") else ours.grad).add(
            theirs.detach(), alpha=config.get("weight_decay", 0)
        )
        theirs.grad = reparam_direction(theirs.detach(), G, lr=0.05 if exact else 0.0)
        optimizer.step()
        sgd.step()
        assert torch.equal(ours, theirs)
    if "momentum" in config:
        assert torch.equal(optimizer.state[ours]["momentum_buffer"], sgd.state[theirs]["momentum_buffer"])


def test_coupled_decay_shrinks_by_s_plus_s_cubed_and_decoupled_by_s():
    A, lr, decay = randn(4, 6, dtype=torch.float64), 0.1, 0.01
    s = torch.linalg.svdvals(A)
    zero = torch.zeros_like(A)
    coupled = torch.linalg.svdvals(stepped(A, zero, lr=lr, weight_decay=decay))
    decoupled = torch.linalg.svdvals(stepped(A, zero, lr=lr, weight_decay=decay, decoupled=True))
    # Singular values are good to a few units of float64 rounding times the largest one.
    torch.testing.assert_close(coupled, s - lr * decay * (s + s**3), atol=1e-13, rtol=0.0)
    torch.testing.assert_close(decoupled, s - lr * decay * s, atol=1e-13, rtol=0.0)


@pytest.mark.parametrize("side", ["right", "left", "both", "balanced"])
def test_convolution_is_its_matrix_and_groups_are_a_list(side):
    param = parameter(6, 4, 3, 3, dtype=torch.float64)
    flat = parameter(6, 4, 3, 3, dtype=torch.float64).detach().flatten(1)
    whole = stepped(flat, param.grad.flatten(1), side=side)
    assert torch.equal(stepped(param, side=side), whole.view(6, 4, 3, 3))
    parts = [stepped(a, g, side=side) for a, g in zip(flat.chunk(3), param.grad.flatten(1).chunk(3), strict=True)]
    # Batched products may order their sums differently: entries of order 1e2, rounding 1e-14.
    torch.testing.assert_close(stepped(param, side=side, blocks=3).flatten(1), torch.cat(parts), atol=1e-12, rtol=0.0)
    assert not torch.allclose(whole, torch.cat(parts))


@pytest.mark.parametrize("blocks", [1, 2])
def test_memory_layout_does_not_matter(blocks):
    param = parameter(4, 3, 2, 2)
    expected = stepped(param, blocks=blocks, momentum=0.9, steps=2)
    last = nn.Parameter(param.detach().clone().to(memory_format=torch.channels_last))
    last.grad = param.grad.to(memory_format=torch.channels_last)
    strided = nn.Parameter(torch.stack([param.detach(), param.detach()], dim=-1)[..., 0])
    strided.grad = torch.stack([param.grad, param.grad], dim=-1)[..., 0]
    for other in (last, strided):
        before = other.stride()
        optimizer = CSGD([other], lr=0.1, blocks=blocks, momentum=0.9)
        optimizer.step()
        optimizer.step()
        assert other.stride() == before
        assert not other.is_contiguous()
        # Strided operands may take another kernel: float32 rounding of entries of order ten.
        torch.testing.assert_close(other.detach(), expected, atol=1e-5, rtol=1e-5)


def test_transposed_matrix():
    param = parameter(4, 6)
    view = nn.Parameter(param.detach().clone().T.contiguous().T)
    view.grad = param.grad
    CSGD([view], lr=0.1).step()
    # Transposed operands may take another kernel: a few float32 roundings of entries of order ten.
    torch.testing.assert_close(view.detach(), stepped(param), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", ["right", "left", "both", "balanced"])
@pytest.mark.parametrize("shape", [(0,), (0, 5), (6, 0), (4, 0, 3, 3), (0, 2, 3, 3)])
@pytest.mark.parametrize("blocks", [1, 2])
def test_empty_parameters(shape, side, blocks):
    assert stepped(parameter(*shape), side=side, blocks=blocks, momentum=0.9).shape == shape


@pytest.mark.parametrize("side", ["right", "left", "both", "balanced"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_follows_single(side, dtype):
    param = parameter(8, 4)
    half = stepped(param.detach().to(dtype), param.grad.to(dtype), side=side)
    assert half.dtype == dtype
    # bfloat16 keeps 8 bits (0.4 %); a handful of roundings of entries up to ten.
    torch.testing.assert_close(half.float(), stepped(param, side=side), atol=0.15, rtol=0.05)
    assert not torch.equal(half, param.detach().to(dtype))


@pytest.mark.parametrize("lr", [torch.tensor(0.1), torch.tensor([0.1])])
@pytest.mark.parametrize("options", [{}, {"exact": True}, {"weight_decay": 0.1, "decoupled": True}], ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (3, 4)])
def test_tensor_lr_is_its_number(shape, options, lr):
    param = parameter(*shape)
    assert torch.equal(stepped(param, lr=lr, **options), stepped(param, lr=lr.item(), **options))


def test_missing_and_zero_gradients_leave_the_weight():
    untouched, zero = nn.Parameter(randn(3, 4)), nn.Parameter(randn(3, 4))
    zero.grad = torch.zeros(3, 4)
    optimizer = CSGD([untouched, zero], lr=0.1, momentum=0.9, exact=True)
    optimizer.step()
    assert torch.equal(untouched, randn(3, 4))
    assert torch.equal(zero, randn(3, 4))
    assert list(optimizer.state) == [zero]


def test_the_gradient_is_left_as_it_was():
    for options in ({}, {"depth": 1, "momentum": 0.9}, {"momentum": 0.9, "weight_decay": 0.1, "maximize": True}):
        param = parameter(3, 4)
        grad = param.grad.clone()
        optimizer = CSGD([param], lr=0.1, **options)
        optimizer.step()
        optimizer.step()
        assert torch.equal(param.grad, grad)


def test_groups_have_their_own_options():
    first, second, third = parameter(4, 6), parameter(4, 6), parameter(4, 6)
    own = [{"side": "left", "exact": True}, {"blocks": 2, "lr": 0.05}, {}]
    before = deepcopy([first, second, third])
    groups = [{"params": [param], **options} for param, options in zip((first, second, third), own, strict=True)]
    CSGD(groups, lr=0.1).step()
    for param, old, options in zip((first, second, third), before, own, strict=True):
        assert torch.equal(param, stepped(old, param.grad, **options))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    "options", [{}, {"exact": True}, {"side": "both"}, {"side": "balanced"}, {"blocks": 2}], ids=str
)
def test_cuda_step_is_the_cpu_step(options):
    param = parameter(6, 4, dtype=torch.float64)
    there = stepped(param.detach().cuda(), param.grad.cuda(), momentum=0.9, steps=3, **options)
    # Other kernels, other order of summation: float64 rounding of a few steps with entries that can reach 1e3.
    torch.testing.assert_close(there.cpu(), stepped(param, momentum=0.9, steps=3, **options), atol=1e-9, rtol=1e-9)
