r"""ScaleMonitor: how a training step moves scale-invariant weights, measured around any torch optimizer.

With w and g = ∇f(w) of a group before the step and w' after it (seed 001, section 3.1; ρ = |w|, g~ = ρ|g|):

    ELR = η/ρ²                          effective learning rate           ESS = ELR·g~     effective step size
    1 - cos(w, w') = |w/ρ - w'/ρ'|²/2   half the squared chord: the cosine itself loses every digit below 1e-7
    ρ'² = (1 - ηλ)² ρ² + η² g~²/ρ²      (4), plain SGD with weight decay λ
    ELR' = ELR·(1 + ESS²)/(1 + ESS_i²)  (9), of group i on a joint sphere; ESS without index is the total

Proposition 1 (5a, 5b): for l <= g~ <= L a jump 1 - cos > δ is possible below ρ² = ηL/√(2δ) and certain below ηl/√(2δ).

Beyond the seed: (9) is checked for plain SGD too, where ρ_i²/ρ² takes its place and 1 becomes (1 - ηλ)², and an alarm
watches the variance before normalization layers (`VarianceWatch`): near their eps nothing is scale-invariant any more.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer
from torch.utils.hooks import RemovableHandle

from thalweg.invariance.norm import joint_norm
from thalweg.invariance.variance import VarianceWatch

__all__ = ["NamedGroup", "ScaleMonitor"]


class NamedGroup(Protocol):
    """A set of parameters with one common scale, by name; `ScaleGroup` is one."""

    @property
    def names(self) -> Sequence[str]:
        """Names as in ``model.named_parameters()``."""


class _Step(NamedTuple):
    """What one step did to one group."""

    rho: float
    grad: float
    dot: float  # <g, w>
    next_rho: float
    chord: float  # |w/ρ - w'/ρ'|
    lr: float
    decay: float

    def row(self, exact: bool) -> dict[str, float]:
        """The numbers of this group; ``exact`` if the step was that of equation (3)."""
        effective, elr = self.rho * self.grad, _ratio(self.lr, self.rho**2)
        predicted = self.kept * self.rho**2 + _ratio((self.lr * effective) ** 2, self.rho**2)
        return {
            "rho": self.rho,
            "grad_norm": self.grad,
            "effective_grad_norm": effective,
            "elr": elr,
            "effective_step_size": elr * effective,
            "cosine_distance": self.chord**2 / 2,
            "radial_cosine": _ratio(self.dot, effective),
            "norm_residual": _ratio(self.next_rho**2, predicted) - 1 if exact else math.nan,
        }

    @property
    def kept(self) -> float:
        """(1 - ηλ)²."""
        return (1 - self.lr * self.decay) ** 2

    @property
    def stretch(self) -> float:
        """(1 - ηλ)² + ESS²: ρ'²/ρ² by equation (4)."""
        return self.kept + _ratio(self.lr * self.grad, self.rho) ** 2


def _ratio(a: float, b: float) -> float:
    """a/b, nan where b is 0: a monitor must not stop a training that has broken down."""
    return a / b if b else math.nan


def _total(steps: Sequence[_Step]) -> _Step:
    """The step of a union of disjoint groups, by |a u - b v|² = (a - b)² + a b |u - v|² for unit vectors u and v."""
    rho, next_rho = math.hypot(*(s.rho for s in steps)), math.hypot(*(s.next_rho for s in steps))
    chord = 0.0
    for s in steps:
        a, b = _ratio(s.rho, rho), _ratio(s.next_rho, next_rho)
        chord += (a - b) ** 2 + a * b * s.chord**2
    rates = {(s.lr, s.decay) for s in steps}
    lr, decay = rates.pop() if len(rates) == 1 else (math.nan, math.nan)
    grad, dot = math.hypot(*(s.grad for s in steps)), sum(s.dot for s in steps)
    return _Step(rho, grad, dot, next_rho, math.sqrt(chord), lr, decay)


class ScaleMonitor:
    r"""Measures scale-invariant weights around an optimizer's steps; a context manager.

    ``rows`` gets one ``{name: number}`` per measured step: ``step`` (counted from 0), then the quantities of all groups
    together, then those of each group as ``label/quantity``, labels being a group's first name (``+k`` for k more).

    ======================  ==========================================================================================
    rho, grad_norm          ρ = |w| before the step and |∇f(w)|
    effective_grad_norm     g~ = ρ |∇f|
    elr                     η/ρ², with the learning rate in the parameter groups (nan where it is not the same for all)
    effective_step_size     ELR·g~
    cosine_distance         1 - cos(w, w'), whatever the optimizer did
    radial_cosine           cos(∇f, w): 0 for scale-invariant weights (2a)
    norm_residual           ρ'² over the right side of (4), minus 1: rounding, or how far the loss is from invariant
    elr_residual            groups only: ELR' over the right side of (9), minus 1
    jump_possible           with ``delta``: ηL/√(2δ), to compare with ρ²; L and l over the last ``window`` measurements
    jump_certain            with ``delta``: ηl/√(2δ)
    variance_over_eps       least median of σ²/eps over normalization layers, and ``layer/variance_over_eps`` of each
    alarms                  layers where that is below ``alarm``; the first time also a RuntimeWarning that names it
    ======================  ==========================================================================================

    Residuals are numbers for ``torch.optim.SGD`` without momentum, `elr_residual` also for `SphereSGD` on one sphere;
    for other optimizers they are nan, and ``elr`` and what is made of it are nominal (no preconditioner, no momentum).
    Training is left as it is, bit for bit. One gradient per step: with a closure that runs many times (LBFGS) the last
    counts. What breaks during training is recorded as nan or inf; what is wrong from the start is an error.

    Cost of a measured step: a copy of the weights and about seven passes over them, one transfer to the host.

    Args:
        model: whose parameter names the groups use.
        optimizer: any torch optimizer over these parameters.
        groups: objects with ``.names``, disjoint, such as `find_scale_groups` returns; None takes all parameters of
            the optimizer together.
        every: measure steps 0, every, 2·every, ..., or those for which ``every(step)`` is true.
        delta: δ of proposition 1.
        window: number of measurements over which its l and L are taken.
        alarm: threshold of σ²/eps; the invariance is off by one part in this many. 0 leaves the layers alone.

    Raises:
        ValueError: options out of range; a group that is empty, unknown, overlapping, not in the optimizer, of norm
            zero or not finite.

    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> model.weight = torch.nn.Parameter(torch.tensor([[2.0, 0.0]]))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    >>> with ScaleMonitor(model, optimizer) as monitor:
    ...     model.weight.grad = torch.tensor([[0.0, 1.5]])
    ...     optimizer.step()
    >>> monitor.last["elr"], monitor.last["effective_grad_norm"], round(monitor.last["cosine_distance"], 6)  # 1 - 4/5
    (0.25, 3.0, 0.2)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        groups: Sequence[NamedGroup] | None = None,
        every: int | Callable[[int], bool] = 1,
        *,
        delta: float | None = None,
        window: int = 21,
        alarm: float = 100.0,
    ) -> None:
        if isinstance(every, int) and every < 1:
            raise ValueError(f"Invalid every: {every}; expected a number of steps >= 1 or a function of the step")
        if delta is not None and not 0.0 < delta < 2.0:
            raise ValueError(f"Invalid delta: {delta}; expected a cosine distance between 0 and 2")
        if window < 1 or not alarm >= 0.0:
            raise ValueError(f"Invalid window or alarm: {window}, {alarm}; expected window >= 1 and alarm >= 0")
        self.model, self.optimizer = model, optimizer
        self.every, self.delta, self.alarm = every, delta, alarm
        self.rows: list[dict[str, float]] = []
        self.step = 0
        self._groups = _resolve(model, optimizer, groups)
        self._split = groups is not None
        self._recent: dict[str, deque[float]] = {name: deque(maxlen=window) for name in ["", *self._groups]}
        self._before: dict[str, list[Tensor]] = {}
        self._handles: list[RemovableHandle] = []
        self._watch: VarianceWatch | None = None
        self._warned: set[str] = set()

    @property
    def last(self) -> dict[str, float]:
        """The latest row; empty before the first."""
        return self.rows[-1] if self.rows else {}

    @property
    def labels(self) -> tuple[str, ...]:
        """What the groups are called in the rows."""
        return tuple(self._groups) if self._split else ()

    def attach(self) -> ScaleMonitor:
        """Begin to measure: hooks on the optimizer's step and the normalization layers."""
        if self._handles:
            raise RuntimeError("this ScaleMonitor is attached already: detach() it first")
        self._handles = [
            self.optimizer.register_step_pre_hook(self._copy),
            self.optimizer.register_step_post_hook(self._measure),
        ]
        self._watch = VarianceWatch(self.model, self._due) if self.alarm else None
        return self

    def detach(self) -> None:
        """Take every hook off and free the copy of the weights; rows stay."""
        while self._handles:
            self._handles.pop().remove()
        if self._watch is not None:
            self._watch.remove()
        self._before = {}

    def __enter__(self) -> ScaleMonitor:
        return self.attach()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def _due(self) -> bool:
        return self.step % self.every == 0 if isinstance(self.every, int) else self.every(self.step)

    @torch.no_grad()
    def _copy(self, *_: Any) -> None:
        if not self._due():
            return
        for label, params in self._groups.items():
            if label not in self._before:
                self._before[label] = [
                    torch.empty_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in params
                ]
            torch._foreach_copy_(self._before[label], params)

    @torch.no_grad()
    def _measure(self, *_: Any) -> None:
        # Gradients are read after the step: with a closure they do not exist before it.
        if self._due() and self._before:
            ratios = self._watch.ratios if self._watch else {}
            found = [_moved(self._before[label], params) for label, params in self._groups.items()]
            numbers = torch.cat([*found, *(ratio.to(found[0]).view(1) for ratio in ratios.values())]).tolist()
            count = 5 * len(found)
            moved = [numbers[i : i + 5] for i in range(0, count, 5)]
            self._append(moved, dict(zip(ratios, numbers[count:], strict=True)))
            ratios.clear()
        self.step += 1

    def record(self, moved: Sequence[Sequence[float]], ratios: Mapping[str, float]) -> None:
        """Append the row of a step that was measured elsewhere, as for stacked networks; counts the step.

        Args:
            moved: ρ, |∇f|, <∇f, w>, ρ' and the chord |w/ρ - w'/ρ'| of each group.
            ratios: normalization layer -> median of σ²/eps.
        """
        if self._due():
            self._append(moved, dict(ratios))
        self.step += 1

    def _append(self, moved: Sequence[Sequence[float]], ratios: dict[str, float]) -> None:
        steps = []
        for params, (rho, grad, dot, next_rho, chord) in zip(self._groups.values(), moved, strict=True):
            steps.append(_Step(rho, grad, dot, next_rho, chord, *self._rates(params)))
        self.rows.append(self._row(steps, ratios))

    def _rates(self, params: list[Tensor]) -> tuple[float, float]:
        """η and λ of these parameters, nan where they are not all the same."""
        euclidean: Callable[[dict[str, Any]], float] | None = getattr(self.optimizer, "euclidean_lr", None)
        members = {id(param) for param in params}
        rates = {
            (euclidean(group) if euclidean else float(group["lr"]), float(group.get("weight_decay", 0.0)))
            for group in self.optimizer.param_groups
            if any(id(param) in members for param in group["params"])
        }
        return rates.pop() if len(rates) == 1 else (math.nan, math.nan)

    def _row(self, steps: list[_Step], ratios: dict[str, float]) -> dict[str, float]:
        options = self.optimizer.param_groups
        plain = isinstance(self.optimizer, torch.optim.SGD) and not any(group["momentum"] for group in options)
        joint = hasattr(self.optimizer, "euclidean_lr") and options[0].get("mode") == "whole"
        total = _total(steps)
        row = {"step": float(self.step), **total.row(plain), **self._jumps("", total)}
        for label, step in zip(self.labels, steps, strict=False):
            own = step.row(plain) | self._jumps(label, step)
            shares = _ratio(step.rho * total.next_rho, step.next_rho * total.rho) ** 2
            own["elr_residual"] = shares * _ratio(step.stretch, total.stretch) - 1 if plain or joint else math.nan
            row |= {f"{label}/{name}": number for name, number in own.items()}
        row |= {f"{layer}/variance_over_eps": ratio for layer, ratio in ratios.items()}
        low = {layer: ratio for layer, ratio in ratios.items() if not ratio >= self.alarm}
        if ratios:
            row |= {"variance_over_eps": min(ratios.values()), "alarms": float(len(low))}
        for layer in low.keys() - self._warned:
            self._warned.add(layer)
            warnings.warn(
                f"step {self.step}: the variance before {layer!r} is {low[layer]:.3g} times its eps, below "
                f"alarm={self.alarm:g}: weights before it are no longer scale-invariant",
                RuntimeWarning,
                stacklevel=5,
            )
        return row

    def _jumps(self, label: str, step: _Step) -> dict[str, float]:
        """Proposition 1, on ρ²: below the first a δ-jump is possible, below the second certain."""
        recent = self._recent[label]
        recent.append(step.rho * step.grad)
        if self.delta is None:
            return {}
        scale = step.lr / math.sqrt(2 * self.delta)
        return {"jump_possible": scale * max(recent), "jump_certain": scale * min(recent)}


def _moved(before: list[Tensor], params: list[Tensor]) -> Tensor:
    """ρ, |g|, <g, w>, ρ' and the chord |w/ρ - w'/ρ'|; ``before`` is used up."""
    pairs = [
        (p.grad.to_dense() if p.grad.is_sparse else p.grad, w)
        for p, w in zip(params, before, strict=True)
        if p.grad is not None
    ]
    rho, next_rho = joint_norm(before), joint_norm(params)
    zero = torch.zeros_like(rho)
    grad = joint_norm([g for g, _ in pairs]) if pairs else zero
    dot = sum((torch.dot(g.flatten().to(w.dtype), w.flatten()).to(rho) for g, w in pairs), zero)
    torch._foreach_mul_(before, next_rho / rho)
    torch._foreach_sub_(before, params)
    return torch.stack([rho, grad, dot, next_rho, joint_norm(before) / next_rho])


def _resolve(model: nn.Module, optimizer: Optimizer, groups: Sequence[NamedGroup] | None) -> dict[str, list[Tensor]]:
    """Label -> parameters of every group, each checked."""
    trained: dict[int, Tensor] = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    if groups is None:
        return {"all": _checked("the optimizer's parameters", list(trained.values()))}
    known: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    found: dict[str, list[Tensor]] = {}
    taken: set[int] = set()
    for number, group in enumerate(groups):
        names = tuple(group.names)
        for name in names:
            if name not in known:
                raise ValueError(f"group {number} names {name!r}, which the model has not got: see named_parameters()")
            if id(known[name]) not in trained:
                raise ValueError(f"group {number} names {name!r}, which the optimizer does not train: leave it out")
            if id(known[name]) in taken:
                raise ValueError(f"{name!r} is named twice: groups must be disjoint for their norms to add up")
            taken.add(id(known[name]))
        label = names[0] if len(names) == 1 else f"{names[0]}+{len(names) - 1}" if names else ""
        found[label] = _checked(f"group {number}", [known[name] for name in names])
    if not found:
        raise ValueError("groups is empty: nothing to measure. Use None for all parameters of the optimizer")
    return found


@torch.no_grad()
def _checked(what: str, params: list[Tensor]) -> list[Tensor]:
    params = [param for param in params if param.numel()]
    if not params:
        raise ValueError(f"{what} has no weights: nothing to measure")
    if any(param.is_complex() for param in params):
        raise ValueError(f"{what} has complex weights, for which ScaleMonitor knows no formula")
    norm = float(joint_norm(params))
    if not 0.0 < norm < math.inf:
        raise ValueError(f"{what} has norm {norm}: a zero or non-finite vector has no direction and no effective rate")
    return params
