r"""K networks of one architecture as one program: stacked weights, one pass, one step, one measurement.

The k-th network's tensors become rows k of stacks (K, ...), so that whatever looks at a network, its optimizer or its
monitor (tests, checkpoints) sees the present weights. Two programs compute losses and gradients of all K:

    products    perceptrons as explicit matrix products. Activations lie as (N, K·C): the first layer, whose input is
                the same for all, is one GEMM, normalization and ReLU see K·C channels, other layers are K GEMMs
    vmap        any network, by ``torch.func.vmap``: for accelerators, where launches cost more than arithmetic

Norms, retraction (6), (4), (9) and the angle are those of `SphereSGD` and `ScaleMonitor`, over stacks.

Products repeat torch's own kernels on the same numbers: on the CPU the results have been found equal bit for bit to
those of networks trained one by one, though no library promises that a GEMM's rounding does not depend on its other
columns. With vmap they are equal up to rounding, in a chaotic regime therefore in their statistics only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from thalweg.invariance import ScaleMonitor
from thalweg.optim import SphereSGD

__all__ = ["Program", "Replicas", "products", "vmapped"]

LossFn = Callable[[Tensor, Tensor], Tensor]

CACHED = 2**16  # numbers of one layer's activations that `products` works on at once


class Replicas:
    """Networks of one architecture in stacks; their parameters, gradients and buffers become views of these.

    Args:
        models: K networks whose only normalization is batch normalization.
        loss_fn: (logits, labels) -> mean loss.
        sample: one input or more, to see how many numbers each normalization averages.

    Attributes:
        by_rows: take products of gradients network by network, as single runs do, for the same bits: where launches
            cost little.

    >>> models = [nn.Linear(2, 3, bias=False) for _ in range(4)]
    >>> stack = Replicas(models, nn.functional.cross_entropy, torch.ones(1, 2)).weights["weight"]
    >>> _ = stack.fill_(1.0)
    >>> stack.shape, models[3].weight.sum().item()
    (torch.Size([4, 3, 2]), 6.0)
    """

    def __init__(self, models: Sequence[nn.Module], loss_fn: LossFn, sample: Tensor) -> None:
        self.models, self.loss_fn = list(models), loss_fn
        named = [dict(model.named_parameters()) for model in models]
        self.weights = {name: torch.stack([found[name].detach() for found in named]) for name in named[0]}
        self.grads = {name: torch.zeros_like(self.weights[name]) for name, p in named[0].items() if p.requires_grad}
        held = [dict(model.named_buffers()) for model in models]
        self.buffers = {name: torch.stack([found[name] for found in held]) for name in held[0]}
        for k, (parameters, buffers) in enumerate(zip(named, held, strict=True)):
            for name, parameter in parameters.items():
                parameter.data = self.weights[name][k]
                parameter.grad = self.grads[name][k] if name in self.grads else None
            for name, buffer in buffers.items():
                buffer.data = self.buffers[name][k]
        self.by_rows = sample.device.type == "cpu"
        self._positions = _positions(models[0], sample)

    def __len__(self) -> int:
        return len(self.models)

    def step(
        self,
        program: Program,
        x: Tensor,
        targets: Tensor,
        optimizers: Sequence[torch.optim.Optimizer],
        monitors: Sequence[ScaleMonitor],
        groups: Sequence[Sequence[str]],
    ) -> Tensor:
        """Train all networks on one batch, and give each monitor the row that it would have measured.

        Args:
            program: `products` or `vmapped`.
            x: (N, ...), the same for all.
            targets: (K, N).
            optimizers: one for each network.
            monitors: one for each network, not attached.
            groups: names of the parameters of each scale group.

        Returns:
            The losses, (K,).
        """
        watched = self._positions if monitors[0].alarm else ()
        running = {name: self.buffers[f"{name}.running_var"].clone() for name in watched}
        losses = program(self, x, targets)
        with torch.no_grad():
            ratios = {name: self._ratio(name, old, len(x)) for name, old in running.items()}
            before = [{name: self.weights[name].clone() for name in names} for names in groups]
            self._advance(optimizers)
            found = [self._moved(held) for held in before]
            rows = torch.cat([*found, *(ratio.to(found[0])[:, None] for ratio in ratios.values())], 1).tolist()
        for monitor, row in zip(monitors, rows, strict=True):
            moved = [row[5 * i : 5 * i + 5] for i in range(len(groups))]
            monitor.record(moved, dict(zip(ratios, row[5 * len(groups) :], strict=True)))
        return losses

    def _ratio(self, name: str, old: Tensor, samples: int) -> Tensor:
        """Median of σ²/eps, (K,), from the running variance's update, as `thalweg.invariance.variance` has it."""
        layer: Any = self.models[0].get_submodule(name)
        new, count = self.buffers[f"{name}.running_var"], self._positions[name] * samples
        variance = torch.lerp(old, new, 1.0 / layer.momentum).clamp(min=0.0) * ((count - 1) / count)
        ratio: Tensor = variance.median(1).values / layer.eps
        return ratio

    def _advance(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        spheres = [o for o in optimizers if isinstance(o, SphereSGD) and _plain_step(o)]
        if len(spheres) < len(optimizers):
            for optimizer in optimizers:
                optimizer.step()
            return
        trained = {id(parameter): name for name, parameter in self.models[0].named_parameters()}
        names = [trained[id(parameter)] for parameter in spheres[0].param_groups[0]["params"]]
        groups = [optimizer.param_groups[0] for optimizer in spheres]
        signs = [-1 if group["maximize"] else 1 for group in groups]
        rates = [o.euclidean_lr(group) * sign for o, group, sign in zip(spheres, groups, signs, strict=True)]
        stacks = [self.weights[name] for name in names]
        for stack, grads in zip(stacks, (self.grads[name] for name in names), strict=True):
            if self.by_rows:
                for w, g, rate in zip(stack, grads, rates, strict=True):
                    w.add_(g, alpha=-rate)
            else:
                stack.sub_(grads * _column(stack.new_tensor(rates), stack))
        for group in groups:
            group["steps"] += 1
        norms = _joint_norms(stacks)
        radii = norms.new_tensor([group["radius"] for group in groups])
        for stack in stacks:
            stack.mul_(_column(radii / norms, stack))

    def _moved(self, before: dict[str, Tensor]) -> Tensor:
        """ρ, |g|, <g, w>, ρ' and the chord |w/ρ - w'/ρ'| of one group, (K, 5); ``before`` is used up."""
        after, grads = ([held[name] for name in before] for held in (self.weights, self.grads))
        rho, next_rho, grad = _joint_norms([*before.values()]), _joint_norms(after), _joint_norms(grads)
        dot = torch.zeros_like(rho)
        for g, w in zip(grads, before.values(), strict=True):
            if self.by_rows:
                dot += torch.stack([torch.dot(a.flatten(), b.flatten()) for a, b in zip(g, w, strict=True)])
            else:
                dot += (g * w).flatten(1).sum(1)
        for w, moved in zip(before.values(), after, strict=True):
            w.mul_(_column(next_rho / rho, w)).sub_(moved)
        return torch.stack([rho, grad, dot, next_rho, _joint_norms([*before.values()]) / next_rho], 1)


Program = Callable[[Replicas, Tensor, Tensor], Tensor]


@torch.no_grad()
def products(replicas: Replicas, x: Tensor, targets: Tensor) -> Tensor:
    """Losses (K,) of K perceptrons; gradients and running statistics are brought up to date.

    Args:
        replicas: of `MLP` without affine parameters.
        x: (N, ...), the same for all.
        targets: (K, N).
    """
    width = max(stack.shape[1] for stack in replicas.grads.values())
    most = max(1, CACHED // (len(x) * width))
    size = -(-len(replicas) // -(-len(replicas) // most))  # equal parts, as few as the cache allows
    parts = [slice(first, first + size) for first in range(0, len(replicas), size)]
    return torch.cat([_products(replicas, part, x, targets[part]) for part in parts])


def _products(replicas: Replicas, part: slice, x: Tensor, targets: Tensor) -> Tensor:
    net: Any = replicas.models[0]
    weights, grads, buffers = (
        {name: stack[part] for name, stack in stacks.items()}
        for stacks in (replicas.weights, replicas.grads, replicas.buffers)
    )
    count, h, kept = len(targets), x.flatten(1), []
    for place in range(1, len(net.hidden), 3):
        w, layer, normalization = weights[f"hidden.{place}.weight"], net.hidden[place + 1], f"hidden.{place + 1}"
        if place == 1:
            z = h @ w.flatten(0, 1).t()
        else:
            z = h.new_empty(len(x), w.shape[0] * w.shape[1])
            for a, own, out in zip(_each(h, count), w, _each(z, count), strict=True):
                torch.mm(a, own.t(), out=out)
        mean, variance = (buffers[f"{normalization}.running_{name}"].view(-1) for name in ("mean", "var"))
        buffers[f"{normalization}.num_batches_tracked"].add_(1)
        a, *statistics = torch.native_batch_norm(z, None, None, mean, variance, True, layer.momentum, layer.eps)
        kept.append((place, h, z, statistics, layer.eps))
        h = a.relu_()
    last = weights["last.weight"]
    rows = [(a @ own.t()).requires_grad_() for a, own in zip(_each(h, count), last, strict=True)]
    with torch.enable_grad():
        losses = [replicas.loss_fn(row, labels) for row, labels in zip(rows, targets, strict=True)]
    d = torch.empty_like(h)
    for grad, own, out in zip(torch.autograd.grad(losses, rows), last, _each(d, count), strict=True):
        torch.mm(grad, own, out=out)
    for place, inputs, z, statistics, eps in reversed(kept):
        d = torch.ops.aten.threshold_backward(d, h, 0)
        d, *_ = torch.ops.aten.native_batch_norm_backward(
            d, z, None, None, None, *statistics, True, eps, [True, False, False]
        )
        w, g = weights[f"hidden.{place}.weight"], grads[f"hidden.{place}.weight"]
        if place == 1:
            torch.mm(d.t(), inputs, out=g.flatten(0, 1))
            break
        h, before = inputs, torch.empty_like(inputs)
        for each, a, own, own_g, out in zip(
            _each(d, count), _each(inputs, count), w, g, _each(before, count), strict=True
        ):
            torch.mm(each.t(), a, out=own_g)
            torch.mm(each, own, out=out)
        d = before
    return torch.stack([loss.detach() for loss in losses])


def vmapped(replicas: Replicas, x: Tensor, targets: Tensor) -> Tensor:
    """Losses (K,) of any networks; gradients and running statistics are brought up to date.

    Args:
        replicas: of any architecture.
        x: (N, ...), the same for all.
        targets: (K, N).
    """
    trained = {name: replicas.weights[name] for name in replicas.grads}
    frozen = {name: stack for name, stack in replicas.weights.items() if name not in trained}

    def loss(
        trained: dict[str, Tensor], frozen: dict[str, Tensor], buffers: dict[str, Tensor], labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        own = {name: buffer.clone() for name, buffer in buffers.items()}  # the pass updates them in place
        logits = functional_call(replicas.models[0], {**trained, **frozen, **own}, (x,))
        return replicas.loss_fn(logits, labels), own

    grads, (losses, buffers) = vmap(grad_and_value(loss, has_aux=True))(trained, frozen, replicas.buffers, targets)
    for held, found in ((replicas.grads, grads), (replicas.buffers, buffers)):
        for name, stack in held.items():
            stack.copy_(found[name].detach())
    found_losses: Tensor = losses.detach()
    return found_losses


def _each(activations: Tensor, count: int) -> Sequence[Tensor]:
    """(N, K·C) -> K views (N, C)."""
    return activations.view(len(activations), count, -1).unbind(1)


def _plain_step(optimizer: SphereSGD) -> bool:
    """Whether there is one sphere, and (2a) is not checked at the next step."""
    group, *others = optimizer.param_groups
    checks = group["check"] != "off" and group["steps"] % group["check_every"] == 0
    return group["mode"] == "whole" and not others and not checks


def _joint_norms(stacks: Sequence[Tensor]) -> Tensor:
    """`thalweg.invariance.norm.joint_norm` for every row of stacks (K, ...): (K,)."""
    rows = [
        stack if stack.ndim == 2 else torch.linalg.vector_norm(stack, dim=tuple(range(2, stack.ndim)))
        for stack in stacks
    ]
    joined = torch.cat(rows, 1)
    norms: Tensor = torch.linalg.vector_norm(joined.double() if joined.device.type == "cpu" else joined, dim=1)
    return norms


def _column(factors: Tensor, stack: Tensor) -> Tensor:
    """(K,) -> (K, 1, ..., 1), to multiply the rows of a stack."""
    return factors.to(stack.dtype).view(-1, *[1] * (stack.ndim - 1))


@torch.no_grad()
def _positions(model: nn.Module, sample: Tensor) -> dict[str, int]:
    """Batch normalization -> how many numbers of one sample it averages for each channel."""
    found: dict[str, int] = {}
    probe = copy.deepcopy(model).eval()
    for name, layer in probe.named_modules():
        if isinstance(layer, _BatchNorm):
            layer.register_forward_hook(
                lambda layer, args, output, name=name: found.update({name: args[0][0].numel() // args[0].shape[1]})
            )
    probe(sample[:1])
    return found
