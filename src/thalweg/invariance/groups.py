r"""Scale-invariant groups of any model, found from gradients alone.

    f(α w_G, rest) = f(w_G, rest)  for all w, α > 0             seed 001, section 3.1, equation (1)
    <∇f(w), w_G> = 0  for all w                                 equation (2a), from (1) by differentiating in α

Published code lists the names of such parameters by hand. Here (2a) is read backwards: s_i = <∇_i L, w_i> is measured
for every tensor on random batches and randomly perturbed weights, and the minimal sets G with Σ_{i∈G} s_i = 0 are the
smallest non-negative vectors of the null space of these measurements (`thalweg.invariance.symmetries`). Each one found
is then tested by equation (1) itself. Names and types of layers play no part.

A normalization's eps makes (1) hold only approximately, so the search runs on a float64 copy with eps = 10⁻¹², and
what the eps of training costs is reported as ``deviation``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from thalweg.invariance.symmetries import SymmetrySpace, disjoint_groups, is_equal, ray_through, symmetry_space
from thalweg.invariance.twin import LossFunction, Twin, own_random_state

__all__ = ["ScaleGroup", "ScaleGroups", "find_scale_groups"]

ALPHAS = (0.1, 2.0, 10.0)
ZERO_GRADIENT = 1e-9  # of |∇_i L|·|w_i|, relative to the largest of the same probe


@dataclass(frozen=True)
class ScaleGroup:
    """Parameters that can be multiplied by one number α > 0 together without changing the loss.

    Attributes:
        names: their names in ``model.named_parameters()``.
        filters: the group is a single tensor, and every slice along its first axis (a filter, a neuron) is
            scale-invariant by itself.
        numel: how many numbers they hold.
        deviation: largest relative change of the loss for α = 1/2 and 2 at the eps of training: 0 if eps were 0.
    """

    names: tuple[str, ...]
    filters: bool = False
    numel: int = 0
    deviation: float = 0.0

    def __str__(self) -> str:
        each = ", each filter by itself" if self.filters else ""
        return f"{' + '.join(self.names)}  ({self.numel:,} numbers{each}; deviation {self.deviation:.0e})"


@dataclass(frozen=True)
class ScaleGroups(Sequence[ScaleGroup]):
    """The groups in the order of the model's parameters, none sharing a parameter with another.

    Attributes:
        groups: the groups themselves; the object is a sequence of them.
        skipped: every parameter that is in no group, and why.
        gap: smallest singular value taken as non-zero and largest taken as zero: far apart where the search was clear.
    """

    groups: tuple[ScaleGroup, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    gap: tuple[float, float] = (float("inf"), 0.0)

    @overload
    def __getitem__(self, index: int) -> ScaleGroup: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ScaleGroup]: ...
    def __getitem__(self, index: int | slice) -> ScaleGroup | Sequence[ScaleGroup]:
        return self.groups[index]

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[ScaleGroup]:
        return iter(self.groups)

    def __str__(self) -> str:
        lines = [f"{len(self)} scale-invariant group{'' if len(self) == 1 else 's'}"]
        lines += [f"  {group}" for group in self.groups]
        if self.skipped:
            lines += ["not scale-invariant", *(f"  {name}: {reason}" for name, reason in self.skipped.items())]
        return "\n".join(lines)


def find_scale_groups(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[Any],
    *,
    generator: torch.Generator | None = None,
    probes: int | None = None,
    samples: int | None = 16,
    eps: float = 1e-12,
    tolerance: float = 1e-6,
) -> ScaleGroups:
    """Find the minimal groups of parameters whose common scale the loss does not see.

    The model is left as it is (parameters, gradients, buffers, training mode), and so is torch's random state. Cost:
    ``probes`` gradients and a dozen losses per group, in float64.

    Args:
        model: any model, called as ``model(input)``; it is examined in training mode.
        loss_fn: ``loss_fn(output, target)``, a scalar.
        batches: pairs (input, target); as many as ``probes`` are read, and reused in turn if there are fewer.
        generator: draws the perturbations of the weights; None is a generator of its own with seed 0.
        probes: gradients to take; None is three for each tensor.
        samples: only the first so many samples of each batch are used (first axis); None uses all.
        eps: replaces every eps that a module keeps as an attribute.
        tolerance: largest cosine between gradient and weight, and relative change of the loss, that counts as zero.

    Returns:
        Groups, with the reason for every parameter that is in none.

    Raises:
        ValueError: no batches, no trainable parameters, fewer probes than tensors, a loss that is not finite, not a
            scalar or depends on no parameter, or batches too small for batch statistics.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, affine=False), nn.ReLU(), nn.Linear(8, 3))
    >>> draw = torch.Generator().manual_seed(0)
    >>> batch = torch.randn(16, 4, generator=draw), torch.randint(3, (16,), generator=draw)
    >>> groups = find_scale_groups(model, nn.functional.cross_entropy, [batch])
    >>> [group.names for group in groups], groups[0].filters
    ([('0.weight',)], True)
    >>> groups.skipped["0.bias"]
    'its gradient is zero: a later layer takes it away, as a normalization does with a bias'
    """
    names, skipped = _candidates(model)
    probes = 3 * len(names) if probes is None else probes
    if probes < len(names):
        raise ValueError(f"{probes} probes cannot tell {len(names)} tensors apart: take at least as many as tensors")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    with own_random_state(model):
        twin = Twin(model, loss_fn, batches, count=probes, samples=samples)
        twin.use_eps(eps)
        found = _measure(twin, names, probes, generator)
        sizes = [twin.params[name].numel() for name in found.names]
        space = symmetry_space(found.S, found.scale, sizes=sizes, tolerance=tolerance)
        groups, refuted = _verify(twin, found, disjoint_groups(space), generator, tolerance)
        twin.use_eps(None)
        groups = [_with_deviation(twin, group) for group in groups]
    skipped |= found.dead | refuted
    listed = {name for group in groups for name in group.names}
    for i, name in enumerate(found.names):
        if name not in listed and name not in skipped:
            skipped[name] = _reason(space, i, found.names)
    in_order = {name: skipped[name] for name, _ in model.named_parameters() if name in skipped}
    return ScaleGroups(tuple(groups), in_order, space.gap)


def _candidates(model: nn.Module) -> tuple[list[str], dict[str, str]]:
    """Names of the parameters to examine, and why the others are not."""
    names, skipped = [], {}
    for name, param in model.named_parameters():
        if not param.requires_grad:
            skipped[name] = "frozen: requires_grad is False"
        elif not param.is_floating_point() or not param.numel():
            skipped[name] = "not examined: it holds no real numbers"
        else:
            names.append(name)
    if not names:
        raise ValueError("the model has no trainable parameters: at least one must have requires_grad=True")
    return names, skipped


@dataclass(frozen=True)
class _Measurements:
    """S: (probes, n) and its column scale: (n,) for the n tensors with a gradient; ``dead``: why others have none."""

    names: list[str]
    S: Tensor
    scale: Tensor
    rows: dict[str, float]
    dead: dict[str, str]


def _measure(twin: Twin, names: list[str], probes: int, generator: torch.Generator) -> _Measurements:
    """<∇_i L, w_i> for every tensor, on random batches and weights; ``rows``: the largest cosine of single rows."""
    params = [twin.params[name] for name in names]
    products, norms, rows = [], [], dict.fromkeys(names, 0.0)
    unused = set(names)
    for k in range(probes):
        with twin.weights(twin.perturbed(names, generator)):
            loss = twin.loss(k)
            if not loss.requires_grad:
                raise ValueError("the loss depends on no trainable parameter: does loss_fn detach the output?")
            gradients = torch.autograd.grad(loss, params, allow_unused=True)
            product, norm = [], []
            for name, w, g in zip(names, params, gradients, strict=True):
                if g is None:
                    product.append(0.0)
                    norm.append(0.0)
                    continue
                unused.discard(name)
                if not bool(g.isfinite().all()):
                    raise ValueError(f"the gradient of {name!r} is not finite although the loss is")
                by_row = (g * w.detach()).reshape(len(w) if w.ndim else 1, -1).sum(1)
                product.append(float(by_row.sum()))
                norm.append(float(g.norm() * w.detach().norm()))
                rows[name] = max(rows[name], float(by_row.abs().max()) / (norm[-1] or 1.0))
            largest = max(norm) or 1.0  # probes with large and small gradients count alike
            products.append([value / largest for value in product])
            norms.append([value / largest for value in norm])
    S, N = torch.tensor(products, dtype=torch.float64), torch.tensor(norms, dtype=torch.float64)
    zero = "its gradient is zero: a later layer takes it away, as a normalization does with a bias"
    alive = [i for i in range(len(names)) if N[:, i].max() > ZERO_GRADIENT]
    dead = {
        name: "unused: the loss does not depend on it" if name in unused else zero
        for i, name in enumerate(names)
        if i not in alive
    }
    scale = N[:, alive].square().mean(0).sqrt()
    return _Measurements([names[i] for i in alive], S[:, alive], scale, rows, dead)


def _verify(
    twin: Twin, found: _Measurements, sets: list[tuple[int, ...]], generator: torch.Generator, tolerance: float
) -> tuple[list[ScaleGroup], dict[str, str]]:
    """Equation (1) itself, on random weights: the groups that pass, and what is wrong with the others."""
    groups, refuted = [], {}
    with twin.weights(twin.perturbed(found.names, generator)):
        for indices in sorted(sets):
            names = tuple(found.names[i] for i in indices)
            change = max(twin.change(k, dict.fromkeys(names, alpha)) for k, alpha in enumerate(ALPHAS))
            if change > tolerance:
                why = f"its gradient is orthogonal to it, yet scaling it changes the loss by {change:.0e} of itself"
                refuted.update(dict.fromkeys(names, why))
                continue
            filters = len(names) == 1 and found.rows[names[0]] <= tolerance
            groups.append(ScaleGroup(names, filters and _filters_scale(twin, names[0], generator, tolerance)))
    return groups, refuted


def _filters_scale(twin: Twin, name: str, generator: torch.Generator, tolerance: float) -> bool:
    """Equation (1) with a random α for every row of one tensor."""
    w = twin.params[name]
    rows = w.shape[0] if w.ndim > 1 else 1
    if rows < 2:
        return False
    draw = torch.rand(rows, *[1] * (w.ndim - 1), generator=generator, device=generator.device, dtype=w.dtype)
    return twin.change(0, {name: torch.exp(2 * draw - 1).to(w.device)}) <= tolerance


def _with_deviation(twin: Twin, group: ScaleGroup) -> ScaleGroup:
    deviation = max(twin.change(k, dict.fromkeys(group.names, alpha)) for k, alpha in enumerate((0.5, 2.0)))
    numel = sum(twin.params[name].numel() for name in group.names)
    return ScaleGroup(group.names, group.filters, numel, deviation)


def _reason(space: SymmetrySpace, i: int, names: list[str]) -> str:
    """Why tensor i is in no group: the symmetry it takes part in, if any."""
    x = ray_through(space, i, signed=True)
    if x is None:
        return "the loss changes when it is scaled"
    up, down = (", ".join(names[j] for j in np.flatnonzero(sign * x > 1e-9)) for sign in (1, -1))
    if not down:
        if is_equal(x):
            return f"scales only together with a member of another group: {up}"
        powers = ", ".join(f"{names[j]}^{x[j]:.3g}" for j in np.flatnonzero(x > 1e-9))
        return f"scales only with unequal exponents: {powers}"
    return f"scales only against others: {up} up, {down} down"
