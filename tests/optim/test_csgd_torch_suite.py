"""The cases torch runs over its own optimizers, run over CSGD with torch's machinery (`OptimizerInfo` and `@optims`).

Left out: complex and sparse parameters (refused), foreach, fused and capturable (not offered), several GPUs.
"""

# ruff: noqa: PT009 - assertEqual is torch's: it compares tensors inside lists and state dicts

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, ExponentialLR, LinearLR, PolynomialLR, ReduceLROnPlateau, StepLR

pytest.importorskip("expecttest")  # torch's test machinery imports it

from torch.testing._internal import common_optimizers as suite
from torch.testing._internal.common_device_type import instantiate_device_type_tests, onlyCPU
from torch.testing._internal.common_utils import TestCase, parametrize

from thalweg.optim import CSGD

LR = 1e-3
CONFIGS = {
    "plain": {},
    "tensor lr": {"lr": torch.tensor(LR)},
    "momentum, dampening": {"momentum": 0.9, "dampening": 0.5},
    "nesterov, weight decay": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "decoupled, maximize": {"weight_decay": 0.1, "decoupled": True, "maximize": True},
    "left": {"side": "left"},
    "both, exact, momentum": {"side": "both", "exact": True, "momentum": 0.9},
    "balanced, depth 3": {"side": "balanced", "depth": 3},
}


def inputs(device, dtype=None):
    return [suite.OptimizerInput(None, {"lr": LR, **deepcopy(kwargs)}, name) for name, kwargs in CONFIGS.items()]


def error_inputs(device, dtype):
    """Torch's errors for every optimizer and for SGD (given the lr that CSGD requires), and CSGD's own."""
    errors = suite.optim_error_inputs_func_sgd(device, dtype)
    for error in errors:
        error.optimizer_error_input.kwargs.setdefault("lr", LR)
    wrong = {"Invalid learning rate: -1": {"lr": -1}, "Invalid side": {"lr": LR, "side": "up"}}
    return errors + [
        suite.ErrorOptimizerInput(suite.OptimizerInput(None, kwargs), error_type=ValueError, error_regex=message)
        for message, kwargs in wrong.items()
    ]


INFO = suite.OptimizerInfo(
    CSGD,
    optim_inputs_func=inputs,
    optim_error_inputs_func=error_inputs,
    scheduler_inputs=(
        [lambda opt: StepLR(opt, gamma=0.9, step_size=10)],
        [lambda opt: StepLR(opt, gamma=0.99, step_size=10), lambda opt: ExponentialLR(opt, 0.99), ReduceLROnPlateau],
        [lambda opt: LinearLR(opt, start_factor=0.4, end_factor=0.8, total_iters=4)],
        [lambda opt: ConstantLR(opt, factor=0.4, total_iters=4), lambda opt: PolynomialLR(opt, 20, power=0.9)],
    ),
    supported_impls=(),
    not_og_supported_flags=("maximize", "exact", "depth", "blocks", "decoupled"),
    supports_complex=False,
    supports_sparse=False,
)


def problem(device, dtype, contiguous=True):
    """Weight and bias of a layer, and a function that leaves the gradients of a quadratic loss and returns it."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape):
        # Small weights: CSGD going uphill lengthens every next step and would overflow within twenty of them.
        spare = 0.3 * torch.randn(*shape, 2, generator=generator, device=device, dtype=dtype)
        return nn.Parameter(spare[..., 0].contiguous() if contiguous else spare[..., 0])

    weight, bias, x = draw(10, 5), draw(10), draw(5).detach()

    def closure():
        weight.grad = bias.grad = None
        loss = (weight.mv(x) + bias).square().sum()
        loss.backward()
        return loss

    return [weight, bias], closure


class TestCSGD(TestCase):
    def train(self, optimizer, closure, steps=20, schedulers=()):
        for _ in range(steps):
            loss = optimizer.step(closure).item()
            for scheduler in schedulers:
                scheduler.step(*[loss] if isinstance(scheduler, ReduceLROnPlateau) else [])

    def assert_right_direction(self, optimizer, closure, schedulers=()):
        before = closure().item()
        self.train(optimizer, closure, schedulers=schedulers)
        better = self.assertGreater if optimizer.param_groups[-1]["maximize"] else self.assertLess
        better(closure().item(), before)

    @onlyCPU
    @suite.optims([INFO])
    def test_errors(self, device, dtype, optim_info):
        for error in optim_info.optim_error_inputs_func(device, dtype):
            made = error.optimizer_error_input
            params = [nn.Parameter(torch.randn(1, 1))] if made.params is None else made.params
            warns = issubclass(error.error_type, Warning)
            expect = self.assertWarnsRegex if warns else self.assertRaisesRegex
            with self.subTest(made.desc), expect(error.error_type, error.error_regex):
                optim_info.optim_cls(params, **made.kwargs)

    @parametrize("contiguous", [True, False])
    @suite.optims([INFO], dtypes=[torch.float32, torch.float64])
    def test_goes_the_right_direction(self, device, dtype, optim_info, contiguous):
        for made in optim_info.optim_inputs_func(device):
            for schedule in ((), *optim_info.scheduler_inputs):
                params, closure = problem(device, dtype, contiguous)
                optimizer = optim_info.optim_cls(params, **deepcopy(made.kwargs))
                self.assertIn("CSGD", repr(optimizer))
                self.assert_right_direction(optimizer, closure, [make(optimizer) for make in schedule])

    @suite.optims([INFO], dtypes=[torch.float64])
    def test_rosenbrock(self, device, dtype, optim_info):
        for made in optim_info.optim_inputs_func(device):
            x = nn.Parameter(torch.tensor([1.5, 1.5], device=device, dtype=dtype))
            optimizer = optim_info.optim_cls([x], **{**made.kwargs, "lr": 1e-5})

            def closure(x=x, optimizer=optimizer):
                optimizer.zero_grad()
                loss = (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
                loss.backward()
                return loss

            self.assert_right_direction(optimizer, closure)

    @suite.optims([INFO])
    def test_groups_with_their_own_lr_and_weight_decay(self, device, dtype, optim_info):
        for own in ({"lr": 1e-2}, {"weight_decay": 0.5}, {"lr": 1e-2, "side": "left"}):
            for made in optim_info.optim_inputs_func(device):
                params, closure = problem(device, dtype)
                if made.kwargs.get("maximize"):
                    continue
                own = own if made.kwargs.get("side") != "balanced" else {**own, "side": "balanced"}
                groups = [{"params": params[:1], **own}, {"params": params[1:]}]
                self.assert_right_direction(optim_info.optim_cls(groups, **made.kwargs), closure)

    @suite.optims([INFO])
    def test_noop_without_gradients_and_with_zero_ones(self, device, dtype, optim_info):
        for made in optim_info.optim_inputs_func(device):
            for empty in (False, True):
                params, _ = problem(device, dtype)
                params += [nn.Parameter(torch.empty(0, 3, device=device)), nn.Parameter(torch.empty(0, device=device))]
                before = deepcopy(params)
                for param in params:
                    param.grad = None if empty else torch.zeros_like(param)
                optimizer = optim_info.optim_cls(params, **{**made.kwargs, "weight_decay": 0.0})
                optimizer.step()
                self.assertEqual(params, before, rtol=0, atol=0)

    @suite.optims([INFO])
    def test_state_dict_resumes_is_deterministic_and_is_not_modified(self, device, dtype, optim_info):
        for made in optim_info.optim_inputs_func(device):
            params, closure = problem(device, dtype)
            optimizer = optim_info.optim_cls(params, **made.kwargs)
            self.train(optimizer, closure)
            others, other_closure = problem(device, dtype)
            for other, param in zip(others, params, strict=True):
                other.data.copy_(param.data)
            saved = deepcopy(optimizer.state_dict())
            resumed = optim_info.optim_cls(others, **made.kwargs)
            resumed.load_state_dict(saved)
            self.assertEqual(saved, optimizer.state_dict(), rtol=0, atol=0)
            self.train(optimizer, closure)
            self.train(resumed, other_closure)
            self.assertEqual(params, others, rtol=0, atol=0)
            self.assertEqual(optimizer.state_dict(), resumed.state_dict(), rtol=0, atol=0)

    @suite.optims([INFO])
    def test_older_state_dicts_load(self, device, dtype, optim_info):
        for made in optim_info.optim_inputs_func(device):
            params, closure = problem(device, dtype)
            optimizer = optim_info.optim_cls(params, **made.kwargs)
            self.train(optimizer, closure, steps=2)
            for flag in optim_info.not_og_supported_flags:
                saved = deepcopy(optimizer.state_dict())
                for group in saved["param_groups"]:
                    del group[flag]
                optimizer.load_state_dict(saved)
                self.assertEqual(optimizer.param_groups[0][flag], optimizer.defaults[flag])
                self.train(optimizer, closure, steps=1)

    @suite.optims([INFO])
    def test_deepcopy_keeps_public_attributes(self, device, dtype, optim_info):
        for made in optim_info.optim_inputs_func(device):
            optimizer = optim_info.optim_cls(problem(device, dtype)[0], **made.kwargs)
            public = {name for name in vars(optimizer) if not name.startswith("_")}
            self.assertEqual(public, {name for name in vars(deepcopy(optimizer)) if not name.startswith("_")})


instantiate_device_type_tests(TestCSGD, globals(), allow_mps=False)
