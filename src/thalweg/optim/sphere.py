r"""SphereSGD: gradient descent on the sphere, where the effective learning rate is fixed by construction.

A loss that is scale-invariant in w, f(αw) = f(w), lives on the sphere |w| = ρ. Seed 001, equation (6):

    ŵ = w - η ∇f(w),    w' = ŵ ρ/|ŵ|,    η = ELR·ρ²              ELR = η/ρ², the effective learning rate

By (2a) the gradient is tangent, <∇f, w> = 0, so nothing has to be projected first, and the step turns w by exactly

    tan φ = ELR·ρ·|∇f|                                            the effective step size, a length on the unit sphere

whatever ρ is: start and radius multiplied by α give the same directions (2b). One sphere can hold all weights (the
seed's setting: the ELRs of single layers then move by equation (9)), each parameter group, or each output row
("filter", the independent ELRs of the authors' code).

Additions to the seed: radii other than the initial norm, spheres per group, ascent, and the check of (2a) at run time.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from thalweg.invariance.norm import joint_norm, row_norms
from thalweg.optim._options import fill_missing_options

__all__ = ["SphereSGD", "elr_to_lr", "lr_to_elr", "sphere_step"]

Mode = Literal["whole", "group", "filter"]
MODES = ("whole", "group", "filter")
CHECKS = ("warn", "raise", "off")


def sphere_step(w: Tensor, g: Tensor, elr: float, radius: float) -> Tensor:
    """One step of seed 001, equation (6): w - ELR·ρ²·g, brought back to the sphere of radius ρ.

    Args:
        w: the weights, any shape, seen as one vector with |w| = ρ.
        g: the gradient at w, same shape.
        elr: effective learning rate; negative climbs.
        radius: ρ > 0.

    >>> w, g = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.5])
    >>> sphere_step(w, g, elr=0.25, radius=2.0)  # tan φ = 0.25 · 2 · 1.5 = 3/4
    tensor([ 1.6000, -1.2000])
    """
    moved = torch.sub(w, g, alpha=elr * radius**2)
    scale: Tensor = radius / torch.linalg.vector_norm(moved)
    return moved * scale


def lr_to_elr(lr: float, radius: float) -> float:
    """ELR = lr/ρ² (seed 001, section 3.1). For one of N equal filters ρ² is ρ_total²/N, so its own ELR is N times more.

    >>> lr_to_elr(0.16, radius=4.0)
    0.01
    """
    return lr / radius**2


def elr_to_lr(elr: float, radius: float) -> float:
    """The learning rate lr = ELR·ρ² of a step in space at |w| = ρ.

    >>> elr_to_lr(0.01, radius=4.0)
    0.16
    """
    return elr * radius**2


class SphereSGD(Optimizer):
    r"""SGD on spheres with a fixed effective learning rate (seed 001, equation (6)).

    ========  ==========================================================  =========================================
    mode      a sphere holds                                              step of its part, before the retraction
    ========  ==========================================================  =========================================
    whole     all parameters of all groups; ρ is their joint norm         w - ELR·ρ²·g
    group     one parameter group; ρ is the group's norm                  w - ELR·ρ²·g, with the group's own ELR
    filter    one output row, w[r], of norm ρ/√N for N rows in all        w - ELR·ρ²·g: a row's own ELR is N·ELR
    ========  ==========================================================  =========================================

    ``group["lr"]`` holds the **ELR**, so every torch scheduler drives it (give OneCycleLR ``cycle_momentum=False``);
    `euclidean_lr` is the learning rate in space. Weights are put on their spheres at construction, which leaves
    a scale-invariant loss as it is; a later group brings its norm along, ρ² ← ρ² + |w|². A parameter without gradient
    counts as g = 0. Momentum is refused: its buffer sums gradients of many points and is not tangent, so the ELR would
    no longer say how far a step goes. Weight decay is refused: it only shortens what the retraction lengthens again.

    Cost: one pass to move, one for the norm, one to scale; about twice ``torch.optim.SGD``. The check of <g, w> = 0
    costs one product and one norm, less than one more step, at the first and every ``check_every``-th one.

    Args:
        params: parameters, named parameters or groups. Only weights in which the loss is scale-invariant belong here.
        elr: effective learning rate >= 0; a one-element tensor is accepted.
        radius: ρ > 0: the whole vector's in modes whole and filter, each group's in mode group, where groups may have
            their own. By default the norm at construction.
        mode: what one sphere holds.
        maximize: ascend.
        check: what to do when ``|cos(g, w)|`` of a sphere exceeds ``tolerance``: "warn" (once), "raise" or "off".
        tolerance: batch normalization with eps = 1e-5 and ordinary weights gives about 2e-5, other weights usually far
            more than the default.
        check_every: steps from one check to the next. Non-finite weights and gradients are found there too.
        momentum: must be 0; it is here to say why.

    Raises:
        ValueError: an option out of range, momentum, weight decay, zero or non-finite weights, vectors in mode filter.
        RuntimeError: complex parameters, sparse or non-finite gradients, or a failed check with ``check="raise"``.

    >>> weight = torch.nn.Parameter(torch.tensor([2.0, 0.0]))
    >>> optimizer = SphereSGD([weight], elr=0.25)
    >>> weight.grad = torch.tensor([0.0, 1.5])
    >>> optimizer.step()
    >>> weight.data
    tensor([ 1.6000, -1.2000])
    """

    def __init__(
        self,
        params: ParamsT,
        elr: float | Tensor,
        *,
        radius: float | None = None,
        mode: Mode = "whole",
        maximize: bool = False,
        check: Literal["warn", "raise", "off"] = "warn",
        tolerance: float = 1e-3,
        check_every: int = 100,
        momentum: float = 0.0,
    ) -> None:
        _refuse_momentum(momentum)
        defaults = {
            "lr": elr,
            "radius": radius,
            "mode": mode,
            "maximize": maximize,
            "check": check,
            "tolerance": tolerance,
            "check_every": check_every,
        }
        super().__init__(params, defaults)
        for sphere in self._spheres():
            _place(sphere, sphere[0]["radius"])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as torch does, after checking its options; its weights join the sphere or get their own."""
        joins = bool(self.param_groups) and "steps" in self.param_groups[0]  # not while the optimizer is being made
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _check_group(group, self.defaults)
            if joins and group["mode"] == "group":
                _place([group], group["radius"])
            elif joins:
                added = float(joint_norm(_weights([group])).detach())
                _place(self.param_groups, math.hypot(self.param_groups[0]["radius"], added))
        except (ValueError, RuntimeError):
            self.param_groups.pop()
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Fill in options that a state saved by an older version does not have."""
        super().__setstate__(state)
        fill_missing_options(self)

    def euclidean_lr(self, group: dict[str, Any]) -> float:
        """ELR·ρ²: what multiplies the gradient of this group's weights."""
        return elr_to_lr(float(group["lr"]), group["radius"])

    def _spheres(self) -> list[list[dict[str, Any]]]:
        """The groups that share a radius: in mode group each alone, otherwise all together."""
        return (
            [[group] for group in self.param_groups] if self.param_groups[0]["mode"] == "group" else [self.param_groups]
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; ``closure`` re-evaluates the model and returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for sphere in self._spheres():
            self._update(sphere)
        return loss

    def _update(self, sphere: list[dict[str, Any]]) -> None:
        first = sphere[0]
        weights, grads, still = _split(sphere)
        if not weights:
            return
        if len(sphere) > 1 and len({float(group["lr"]) for group in sphere}) > 1:
            raise ValueError(
                f"mode={first['mode']!r} has one radius and one ELR, but the groups' are "
                f"{[float(group['lr']) for group in sphere]}: use mode='group', or leave frozen weights out"
            )
        each = first["radius"]  # of a single sphere
        if first["mode"] == "filter":
            each /= math.sqrt(sum(len(w) for w in weights + still))
        if first["check"] != "off" and first["steps"] % first["check_every"] == 0:
            _check_tangent(first, weights, grads, each)
        first["steps"] += 1
        lr = self.euclidean_lr(first) * (-1 if first["maximize"] else 1)
        if first["mode"] == "filter":
            for w, g in zip(weights, grads, strict=True):
                w.add_(g, alpha=-lr)
                w.mul_(_column(each / row_norms(w), w))
        elif weights[0].device.type == "cpu":
            # The norm is taken of what the cache still holds, and scaling begins with what was moved last.
            rows = [row_norms(w) for w in still] + [
                row_norms(w.add_(g, alpha=-lr)) for w, g in zip(weights, grads, strict=True)
            ]
            torch._foreach_mul_((still + weights)[::-1], each / float(joint_norm(rows)))
        else:
            torch._foreach_add_(weights, grads, alpha=-lr)
            torch._foreach_mul_(weights + still, each / joint_norm(weights + still))


def _split(sphere: Sequence[dict[str, Any]]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Weights that have gradients, these gradients, and weights without, which share the sphere."""
    weights, grads, still = [], [], []
    for param in _weights(sphere):
        if param.grad is None:
            still.append(param)
        elif param.grad.is_sparse:
            raise RuntimeError("SphereSGD does not support sparse gradients")
        else:
            weights.append(param)
            grads.append(param.grad)
    return weights, grads, still


def _weights(sphere: Sequence[dict[str, Any]]) -> list[Tensor]:
    return [param for group in sphere for param in group["params"] if param.numel()]


def _column(factors: Tensor, weight: Tensor) -> Tensor:
    """(out,) -> (out, 1, ..., 1), to multiply the rows of a weight."""
    return factors.to(weight.dtype).view(-1, *[1] * (weight.ndim - 1))


@torch.no_grad()
def _place(sphere: list[dict[str, Any]], radius: float | None) -> None:
    """Put the weights of these groups on their sphere, or spheres; None keeps their joint norm as the radius."""
    weights, mode = _weights(sphere), sphere[0]["mode"]
    norm = float(joint_norm(weights)) if weights else 0.0
    smallest = min((float(row_norms(w).min()) for w in weights), default=0.0) if mode == "filter" else norm
    if not (smallest > 0.0 and math.isfinite(norm)):
        what = "every filter" if mode == "filter" else f"mode={mode!r}"
        found = smallest if math.isfinite(norm) else norm
        raise ValueError(f"{what} needs weights of finite norm above 0, got {found}: a zero vector has no direction")
    target = norm if radius is None else float(radius)
    if mode == "filter":
        each = target / math.sqrt(sum(len(w) for w in weights))
        for w in weights:
            w.mul_(_column(each / row_norms(w), w))
    elif radius is not None:
        torch._foreach_mul_(weights, target / norm)
    for group in sphere:
        group["radius"] = target
        group.setdefault("steps", 0)
        group.setdefault("warned", False)


def _check_tangent(first: dict[str, Any], weights: list[Tensor], grads: list[Tensor], each: float) -> None:
    """Warn or raise unless <g, w> = 0 (2a) on every sphere of radius ``each``, as far as ``tolerance`` asks."""
    if first["mode"] == "filter":
        dots = torch.cat([(w * g).flatten(1).sum(1) for w, g in zip(weights, grads, strict=True)])
        lengths = torch.cat([row_norms(g) for g in grads]) * each
    else:
        dots = torch.stack([torch.dot(w.flatten(), g.flatten()) for w, g in zip(weights, grads, strict=True)]).sum()
        lengths = joint_norm(grads) * each
    cosine = float(torch.where(lengths == 0, 0.0, dots / lengths).abs().max())
    if not math.isfinite(cosine):
        raise RuntimeError(f"SphereSGD found a non-finite weight or gradient at step {first['steps']}: lower the ELR?")
    if cosine <= first["tolerance"] or first["warned"]:
        return
    message = (
        f"|cos(g, w)| = {cosine:.2g} exceeds tolerance={first['tolerance']:g} at step {first['steps']}: the loss is "
        "not scale-invariant in these parameters, and the retraction changes it. Leave the others to another optimizer"
    )
    if first["check"] == "raise":
        raise RuntimeError(message)
    first["warned"] = True
    warnings.warn(message, RuntimeWarning, stacklevel=5)


def _refuse_momentum(momentum: float) -> None:
    if momentum:
        raise ValueError(
            f"SphereSGD has no momentum, got {momentum}: a momentum buffer is not tangent to the sphere, so a fixed "
            "ELR would not fix the length of a step. Use momentum=0"
        )


def _check_group(group: dict[str, Any], defaults: dict[str, Any]) -> None:
    lr, mode, radius = group["lr"], group["mode"], group["radius"]
    _refuse_momentum(group.get("momentum", 0.0))
    if group.get("weight_decay", 0.0):
        raise ValueError("SphereSGD has no weight_decay: the retraction undoes it. Use weight_decay=0")
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError("Tensor elr must be 1-element")
    if not lr >= 0.0:
        raise ValueError(f"Invalid effective learning rate: {lr}")
    if mode not in MODES:
        raise ValueError(f"Invalid mode: {mode!r}; expected one of {', '.join(MODES)}")
    if mode != defaults["mode"] or (mode != "group" and radius != defaults["radius"]):
        raise ValueError("mode, and radius unless mode='group', are the optimizer's: groups cannot have their own")
    if radius is not None and not 0.0 < radius < math.inf:
        raise ValueError(f"Invalid radius: {radius}; expected a number > 0, or None for the norm at construction")
    if group["check"] not in CHECKS:
        raise ValueError(f"Invalid check: {group['check']!r}; expected one of {', '.join(CHECKS)}")
    if not group["tolerance"] >= 0.0:
        raise ValueError(f"Invalid tolerance: {group['tolerance']}")
    if not isinstance(group["check_every"], int) or group["check_every"] < 1:
        raise ValueError(f"Invalid check_every: {group['check_every']!r}; expected an integer >= 1")
    for param in group["params"]:
        if param.is_complex():
            raise RuntimeError("SphereSGD does not support complex parameters")
        if mode == "filter" and param.ndim < 2:
            raise ValueError(
                f"mode='filter' needs rows, got a parameter of shape {tuple(param.shape)}: biases and gains do not "
                "belong on a sphere of their own"
            )
